"""The causal decoder: GPT-2, Llama, Falcon, Mixtral, Gemma 3, Grok-1 and DeepSeek-V3 are its configurations.

B batch, T tokens, D model width, V vocabulary, L layers.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moekit.config import DenseConfig, LayerConfig, ModelConfig
from moekit.kernels.backends import Backend
from moekit.models.language_model import LanguageModel, is_bias
from moekit.moe import Decision, MoELayer, RouterInput, Routing
from moekit.nn import FeedForward, KeyValueCache, Rope, RopeAngles, new_attention, new_norm, new_rope, token_loss


class DecoderLayer(nn.Module):
    """Attention and feed-forward around the residual stream, arranged as `LayerConfig.block` says."""

    def __init__(self, model: ModelConfig, config: LayerConfig, backend: Backend) -> None:
        super().__init__()
        self.block, width = config.block, model.width
        self.attention_norm = new_norm(config.norm, width)
        self.attention = new_attention(width, config.attention, config.norm)
        if config.block != "parallel_shared":
            self.feed_forward_norm = new_norm(config.norm, width)
        if config.block == "sandwich":
            self.attention_after_norm = new_norm(config.norm, width)
            self.feed_forward_after_norm = new_norm(config.norm, width)
        self.feed_forward: FeedForward | MoELayer
        if isinstance(config.feed_forward, DenseConfig):
            self.feed_forward = FeedForward(width, config.feed_forward)
        else:
            self.feed_forward = MoELayer(width, config.feed_forward, model.vocab_size, backend)

    def forward(
        self,
        h_BTD: Tensor,
        added_BTD: Tensor | None,
        angles: RopeAngles | None,
        cache: KeyValueCache | None,
        given: RouterInput,
    ) -> tuple[Tensor, Tensor, Routing | None]:
        """Compute two terms whose sum is the stream after this layer, and its Routing where it has experts.

        What reads the stream next adds them up: a norm does it in the same pass. The stream before this layer comes
        in two terms likewise, of which the second may be None.
        """
        if added_BTD is None:
            normed_BTD = self.attention_norm(h_BTD)
        else:
            h_BTD, normed_BTD = self.attention_norm(h_BTD, added_BTD)
        y_BTD = self.attention(normed_BTD, angles, cache)
        match self.block:
            case "pre":
                h_BTD, normed_BTD = self.feed_forward_norm(h_BTD, y_BTD)
                z_BTD, routing = self._feed_forward(normed_BTD, given)
            case "sandwich":
                h_BTD, normed_BTD = self.feed_forward_norm(h_BTD, self.attention_after_norm(y_BTD))
                z_BTD, routing = self._feed_forward(normed_BTD, given)
                z_BTD = self.feed_forward_after_norm(z_BTD)
            case "parallel":
                z_BTD, routing = self._feed_forward(self.feed_forward_norm(h_BTD), given)
                h_BTD = h_BTD + y_BTD
            case "parallel_shared":
                z_BTD, routing = self._feed_forward(normed_BTD, given)
                h_BTD = h_BTD + y_BTD
        return h_BTD, z_BTD, routing

    def _feed_forward(self, x_BTD: Tensor, given: RouterInput) -> tuple[Tensor, Routing | None]:
        if isinstance(self.feed_forward, MoELayer):
            return self.feed_forward(x_BTD, given)  # type: ignore[no-any-return]
        return self.feed_forward(x_BTD), None


class Decoder(LanguageModel):
    """A decoder built from `config`, its weights drawn from torch's current seed.

    Args:
        config: the configuration.
        backend: the kernels that compute the experts.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig, backend: Backend = "fastest") -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width) if config.learned_positions else None
        # Layers with the same frequencies share their angles.
        self.ropes, self.rope_of_layer = _distinct([new_rope(layer.attention) for layer in config.layers])
        self.layers = nn.ModuleList(DecoderLayer(config, layer, backend) for layer in config.layers)
        self.norm = new_norm(config.norm, config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._initialize()

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The layers that have experts, in the order in which their Routings come."""
        return [layer.feed_forward for layer in self.layers if isinstance(layer.feed_forward, MoELayer)]

    @property
    def moe_places(self) -> list[int]:
        """The indices in the model of the layers that have experts."""
        return [index for index, layer in enumerate(self.layers) if isinstance(layer.feed_forward, MoELayer)]

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        caches: list[KeyValueCache] | None = None,
        routings: list[Routing] | None = None,
        real_BT: Tensor | None = None,
        decisions: list[Decision] | None = None,
        recompute: bool = False,
        last_only: bool = False,
    ) -> Tensor:
        """Compute logits_BTV of the token after each of tokens_BT.

        Args:
            tokens_BT: int64 ids.
            caches: one a layer, from `new_caches`; tokens_BT then follow those seen before, and the caches are
                extended.
            routings: a list that gets the Routing of each MoE layer appended, in the order of the layers.
            real_BT: bool, False for padding, which has to stand at the end: no expert computes it, no loss counts it.
            decisions: one per MoE layer, filled at the first pass with what the routers chose, obeyed by later ones.
            recompute: keep no activations inside layers and compute them again in the backward pass, with the same
                choices.
            last_only: give the logits after the last token alone, (B, 1, V): of a prompt nobody needs the others.

        Raises:
            ValueError: where the sequence is longer than the context.
        """
        start = caches[0].length if caches else 0
        if start + tokens_BT.shape[1] > self.config.context:
            raise ValueError(f"{start + tokens_BT.shape[1]} tokens are more than the context of {self.config.context}")
        given = RouterInput(
            token_T=tokens_BT.flatten(), real_T=None if real_BT is None else real_BT.flatten(), decision=None
        )
        to_obey = iter(decisions or [Decision() for _ in self.moe_layers])
        h_BTD = self._embed(tokens_BT, start)
        added_BTD: Tensor | None = None
        angles = [rope.angles(start, tokens_BT.shape[1], tokens_BT.device) for rope in self.ropes]
        for index, layer in enumerate(self.layers):
            if isinstance(layer.feed_forward, MoELayer) and (decisions or recompute):
                given = replace(given, decision=next(to_obey))
            rope = self.rope_of_layer[index]
            cache = caches[index] if caches else None
            arguments = (h_BTD, added_BTD, None if rope is None else angles[rope], cache, given)
            if recompute and torch.is_grad_enabled():
                h_BTD, added_BTD, routing = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                h_BTD, added_BTD, routing = layer(*arguments)
            if routings is not None and routing is not None:
                routings.append(routing)
        assert added_BTD is not None  # there is a layer
        if last_only:
            h_BTD, added_BTD = h_BTD[:, -1:], added_BTD[:, -1:]
        logits_BTV: Tensor = self.head(self.norm(h_BTD, added_BTD)[1])
        return logits_BTV if self.config.logit_scale == 1 else logits_BTV * self.config.logit_scale

    def new_caches(self, batch: int, dtype: torch.dtype = torch.float32) -> list[KeyValueCache]:
        """Make empty KV caches for `batch` sequences of up to the context's length."""
        attentions = [cast(DecoderLayer, layer).attention for layer in self.layers]
        return [attention.new_cache(batch, self.config.context, dtype) for attention in attentions]

    def log_prob(
        self,
        tokens_BT: Tensor,
        routings: list[Routing] | None = None,
        *,
        real_BT: Tensor | None = None,
        decisions: list[Decision] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Compute log p in nats of each token but the first given those before it: shape (B, T - 1), at least fp32.

        The options are those of `forward`; real_BT has the shape of tokens_BT.
        """
        inputs_BT = tokens_BT[:, :-1]
        real_BT = None if real_BT is None else real_BT[:, :-1]
        logits_BTV = self(inputs_BT, routings=routings, real_BT=real_BT, decisions=decisions, recompute=recompute)
        loss_S = token_loss(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        return -loss_S.view(tokens_BT.shape[0], -1)

    def loss(
        self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None, **passes: Any
    ) -> tuple[Tensor, int]:
        """Compute the sum of -log p in nats over all tokens but the first of each row, and their number.

        Args:
            batch: `tokens` (B, T + 1), int64, and where some are padding, which has to stand at the end, `real`, bool.
            routings: a list that gets the Routing of each MoE layer appended.
            passes: `decisions` and `recompute`, as `forward` takes them.
        """
        real_BT = batch.get("real")
        log_prob_BT = self.log_prob(batch["tokens"], routings, real_BT=real_BT, **passes)
        if real_BT is None:
            return -log_prob_BT.sum(), log_prob_BT.numel()
        return -log_prob_BT.masked_fill(~real_BT[:, 1:], 0).sum(), int(real_BT[:, 1:].sum())

    def _embed(self, tokens_BT: Tensor, start: int) -> Tensor:
        h_BTD: Tensor = self.embedding(tokens_BT)
        if self.config.embedding_scale != 1:
            h_BTD = h_BTD * self.config.embedding_scale
        if self.position_embedding is not None:
            h_BTD = h_BTD + self.position_embedding.weight[start : start + tokens_BT.shape[1]]
        return h_BTD

    def _initialize(self) -> None:
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * len(self.layers))
        of_routers = {parameter for layer in self.moe_layers for parameter in layer.router.parameters()}
        for name, parameter in self.named_parameters():
            if parameter in of_routers:
                continue  # they see to theirs below
            if is_bias(name):
                nn.init.zeros_(parameter)
                continue
            if parameter.dim() == 1:
                continue  # norms start at one, or at zero where it stands for one
            writes_to_residual = name.endswith(("attention.output.weight", "down.weight", "down_EDF"))
            nn.init.normal_(parameter, std=residual_std if writes_to_residual else std)
        for layer in self.moe_layers:
            layer.router.initialize(std)


def _distinct(ropes: list[Rope | None]) -> tuple[list[Rope], list[int | None]]:
    """Keep one of several equal ropes, and tell which of those kept each layer has."""
    kept: dict[tuple[tuple[float, ...], float], tuple[int, Rope]] = {}
    places: list[int | None] = []
    for rope in ropes:
        if rope is None:
            places.append(None)
        else:
            key = tuple(rope.frequencies), rope.magnitude
            places.append(kept.setdefault(key, (len(kept), rope))[0])
    return [rope for _, rope in kept.values()], places
