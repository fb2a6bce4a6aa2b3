"""The causal decoder: Llama's shape where a layer is dense, Mixtral's where it is a mixture of experts.

B batch, T tokens, D model width, V vocabulary, L layers.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moekit.config import DenseConfig, FeedForwardConfig, ModelConfig
from moekit.kernels import Backend
from moekit.moe import Decision, MoELayer, RouterInput, Routing
from moekit.nn import Attention, GatedFeedForward, KeyValueCache, RMSNorm, Rotary


class DecoderLayer(nn.Module):
    """h + attention(norm(h)), then h + feed_forward(norm(h))."""

    def __init__(self, config: ModelConfig, feed_forward: FeedForwardConfig, backend: Backend) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config.width, config.attention)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward: GatedFeedForward | MoELayer
        if isinstance(feed_forward, DenseConfig):
            self.feed_forward = GatedFeedForward(config.width, feed_forward.width)
        else:
            self.feed_forward = MoELayer(config.width, feed_forward, config.vocab_size, backend)

    def forward(
        self, h_BTD: Tensor, rotary: Rotary, cache: KeyValueCache | None, given: RouterInput
    ) -> tuple[Tensor, Routing | None]:
        h_BTD = h_BTD + self.attention(self.attention_norm(h_BTD), rotary, cache)
        x_BTD = self.feed_forward_norm(h_BTD)
        if isinstance(self.feed_forward, MoELayer):
            y_BTD, routing = self.feed_forward(x_BTD, given)
            return h_BTD + y_BTD, routing
        return h_BTD + self.feed_forward(x_BTD), None


class Decoder(nn.Module):
    """A decoder built from `config`, its weights drawn from torch's current seed.

    backend: the kernels that compute the experts.
    """

    def __init__(self, config: ModelConfig, backend: Backend = "torch") -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.rotary = Rotary(config.attention.head_width, config.context, config.attention.rope_base)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, backend) for layer in config.layers)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._initialize()

    @property
    def moe_layers(self) -> list[MoELayer]:
        """Those that have experts, in the order in which their Routings come."""
        return [layer.feed_forward for layer in self.layers if isinstance(layer.feed_forward, MoELayer)]

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        caches: list[KeyValueCache] | None = None,
        routings: list[Routing] | None = None,
        real_BT: Tensor | None = None,
        decisions: list[Decision] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """logits_BTV of the token after each of tokens_BT (int64).

        caches: one a layer, from `new_caches`; tokens_BT then follow those seen before, and the caches are extended.
        routings: a list that gets the Routing of each MoE layer appended, in the order of the layers.
        real_BT: bool, False for padding, which has to stand at the end: no expert computes it, no loss counts it.
        decisions: one per MoE layer, filled at the first pass with what the routers chose, obeyed by later ones.
        recompute: keep no activations inside layers and compute them again in the backward pass, with the same choices.
        Raises ValueError where the sequence is longer than the context.
        """
        if tokens_BT.shape[1] > self.config.context:
            raise ValueError(f"{tokens_BT.shape[1]} tokens are more than the context of {self.config.context}")
        given = RouterInput(
            token_T=tokens_BT.flatten(), real_T=None if real_BT is None else real_BT.flatten(), decision=None
        )
        to_obey = iter(decisions or [Decision() for _ in self.moe_layers])
        h_BTD = self.embedding(tokens_BT)
        for index, layer in enumerate(self.layers):
            if isinstance(layer.feed_forward, MoELayer) and (decisions or recompute):
                given = replace(given, decision=next(to_obey))
            arguments = (h_BTD, self.rotary, caches[index] if caches else None, given)
            if recompute and torch.is_grad_enabled():
                h_BTD, routing = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                h_BTD, routing = layer(*arguments)
            if routings is not None and routing is not None:
                routings.append(routing)
        return self.head(self.norm(h_BTD))  # type: ignore[no-any-return]

    def new_caches(self, batch: int, dtype: torch.dtype = torch.float32) -> list[KeyValueCache]:
        """Empty key-value caches for `batch` sequences of up to the context's length."""
        context, attention = self.config.context, self.config.attention
        return [KeyValueCache(batch, attention, context, dtype) for _ in self.layers]

    def log_prob(
        self,
        tokens_BT: Tensor,
        routings: list[Routing] | None = None,
        *,
        real_BT: Tensor | None = None,
        decisions: list[Decision] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """log p in nats of each token but the first given those before it: shape (B, T - 1), at least fp32.

        The options are those of `forward`; real_BT has the shape of tokens_BT.
        """
        inputs_BT = tokens_BT[:, :-1]
        real_BT = None if real_BT is None else real_BT[:, :-1]
        logits_BTV = self(inputs_BT, routings=routings, real_BT=real_BT, decisions=decisions, recompute=recompute)
        logits_BTV = logits_BTV.to(torch.promote_types(torch.float32, logits_BTV.dtype))
        loss_S = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
        return -loss_S.view(tokens_BT.shape[0], -1)

    def _initialize(self) -> None:
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * len(self.layers))
        of_routers = {parameter for layer in self.moe_layers for parameter in layer.router.parameters()}
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1 or parameter in of_routers:
                continue  # norms start at one, the mixing bias at its default; routers see to theirs below
            writes_to_residual = name.endswith(("attention.output.weight", "down.weight", "down_EDF"))
            nn.init.normal_(parameter, std=residual_std if writes_to_residual else std)
        for layer in self.moe_layers:
            layer.router.initialize(std)
