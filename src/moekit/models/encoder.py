"""The bidirectional encoder with a masked-language-model head: BERT is one of its configurations.

B batch, T tokens, D model width, H heads, C head width, V vocabulary, N positions that are predicted.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import DenseConfig, FeedForwardConfig
from moekit.config.encoder import EncoderConfig
from moekit.core.errors import MoekitError
from moekit.kernels.activation import Activation
from moekit.kernels.backends import Backend
from moekit.models.language_model import LanguageModel, is_bias
from moekit.moe import MoELayer, RouterInput, Routing
from moekit.nn import FeedForward

NOT_PREDICTED = -100
"""The label of a position that no loss counts (torch's own `ignore_index`)."""

# What `log_prob` computes at once: that many tokens, and that many logits.
_TOKENS_AT_ONCE, _LOGITS_AT_ONCE = 1 << 13, 1 << 24


class EncoderOutput(NamedTuple):
    """The encoder's predictions.

    Attributes:
        logits_BTV: the logits of the token at each position.
        next_sentence_B2: the logits of "it follows" and "it is random", or None.
    """

    logits_BTV: Tensor
    next_sentence_B2: Tensor | None


class EncoderAttention(nn.Module):
    """Attention of all positions to all that are real; queries, keys and values are one matrix, in that order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, seen_B11T: Tensor | None) -> Tensor:
        """Compute y_BTD. seen_B11T: bool, the positions that are looked at; None for all."""
        projected = self.query_key_value(x_BTD).unflatten(-1, (3, self.heads, -1))
        query_BHTC, key_BHTC, value_BHTC = projected.permute(2, 0, 3, 1, 4).unbind()
        mixed_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, attn_mask=seen_B11T)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class PostNormFeedForward(nn.Module):
    """norm(x + f(x)), where f is a dense network or has experts."""

    def __init__(
        self, width: int, config: FeedForwardConfig, *, vocab_size: int, norm_eps: float, backend: Backend
    ) -> None:
        super().__init__()
        self.network: FeedForward | MoELayer
        if isinstance(config, DenseConfig):
            self.network = FeedForward(width, config)
        else:
            self.network = MoELayer(width, config, vocab_size, backend)
        self.norm = nn.LayerNorm(width, norm_eps)

    def forward(self, x_BTD: Tensor, given: RouterInput, routings: list[Routing] | None) -> Tensor:
        """Compute y_BTD, and append the Routing of a layer with experts to `routings`."""
        if isinstance(self.network, MoELayer):
            y_BTD, routing = self.network(x_BTD, given)
            if routings is not None:
                routings.append(routing)
        else:
            y_BTD = self.network(x_BTD)
        return self.norm(x_BTD + y_BTD)  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """A layer: h = norm(h + attention(h)), then h = norm(h + f(h))."""

    def __init__(self, config: EncoderConfig, index: int, backend: Backend) -> None:
        super().__init__()
        self.attention = EncoderAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.feed_forward = PostNormFeedForward(
            config.width,
            config.layers[index],
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            backend=backend,
        )

    def forward(
        self, h_BTD: Tensor, seen_B11T: Tensor | None, given: RouterInput, routings: list[Routing] | None
    ) -> Tensor:
        """Compute h_BTD after this layer."""
        h_BTD = self.attention_norm(h_BTD + self.attention(h_BTD, seen_B11T))
        return self.feed_forward(h_BTD, given, routings)  # type: ignore[no-any-return]


class Encoder(LanguageModel):
    """An encoder built from `config`, its weights drawn from torch's current seed.

    Args:
        config: the configuration.
        backend: the kernels that compute the experts, where there are any.
    """

    config: EncoderConfig

    def __init__(self, config: EncoderConfig, backend: Backend = "fastest") -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.type_embedding = nn.Embedding(config.types, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config, index, backend) for index in range(len(config.layers)))
        self.head_dense = nn.Linear(config.width, config.width)
        self.head_activation = Activation(config.head_activation, gated=False)
        self.head_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = nn.Linear(config.width, config.width) if config.next_sentence else None
        self.next_sentence = nn.Linear(config.width, 2) if config.next_sentence else None
        initialize(self, config.init_std)

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The layers that have experts, in the order in which their Routings come."""
        return [module for module in self.layers.modules() if isinstance(module, MoELayer)]

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        types_BT: Tensor | None = None,
        real_BT: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> EncoderOutput:
        """Predict the token at each position of tokens_BT, given all real positions.

        Args:
            tokens_BT: int64 ids.
            types_BT: int64, which sentence a token belongs to; None for the first.
            real_BT: bool, False for padding, which no position looks at and no expert computes. None means that all are
                real.
            routings: a list that gets the Routing of each MoE layer appended, in the order of the layers.

        Raises:
            ValueError: where the sequence is longer than the context.
        """
        h_BTD = self._encode(tokens_BT, types_BT, real_BT, routings)
        return EncoderOutput(self._logits(h_BTD), self._next_sentence(h_BTD))

    def log_prob(self, tokens_BT: Tensor, *, types_BT: Tensor | None = None, real_BT: Tensor | None = None) -> Tensor:
        """Compute the pseudo-log-likelihood: log p in nats of each token but the first given ALL others, on both sides.

        Each position in turn is replaced by the mask (Salazar et al., arXiv 1910.14659, eq. 1), so the sum is no
        log-probability of the text and does not compare with that of a causal model. Tokens are scored as they come:
        [CLS] and [SEP] around them are the caller's. It takes T - 1 passes, in chunks of bounded memory. The options
        are those of `forward`.

        Returns:
            Shape (B, T - 1), at least fp32.

        Raises:
            MoekitError: where the configuration has no mask_token.
        """
        mask = self.config.mask_token
        if mask is None:
            raise MoekitError("The model has no mask_token in its configuration, and without it cannot score text.")
        batch, tokens = tokens_BT.shape
        at_once = max(1, min(_TOKENS_AT_ONCE // tokens, _LOGITS_AT_ONCE // self.config.vocab_size))
        scores = []
        for rows_N in torch.split(torch.arange(batch * (tokens - 1), device=tokens_BT.device), at_once):
            sequence_N, place_N = rows_N // (tokens - 1), rows_N % (tokens - 1) + 1
            every_N = torch.arange(len(rows_N), device=tokens_BT.device)
            masked_NT = tokens_BT[sequence_N]
            masked_NT[every_N, place_N] = mask
            types_NT, real_NT = (None if given is None else given[sequence_N] for given in (types_BT, real_BT))
            h_NTD = self._encode(masked_NT, types_NT, real_NT, None)
            scores.append(-_cross_entropy(self._logits(h_NTD[every_N, place_N]), tokens_BT[sequence_N, place_N]))
        return torch.cat(scores).view(batch, tokens - 1)

    def loss(self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None) -> tuple[Tensor, int]:
        """Compute BERT's loss of a batch of `moekit.data.objectives.masked`: its sum in nats, and N, the predictions.

        The mean over N is that over the masked tokens plus, where the batch has pairs of sentences, that over the pairs
        (arXiv 1810.04805, appendix A.2).
        """
        labels_BT = batch["labels"]
        h_BTD = self._encode(batch["tokens"], batch.get("types"), batch.get("real"), routings)
        predicted_BT = labels_BT != NOT_PREDICTED
        # The head is the larger part of a small model, and most positions need none.
        labels_N = labels_BT[predicted_BT]
        loss = _cross_entropy(self._logits(h_BTD[predicted_BT]), labels_N).sum()
        pairs_B2 = self._next_sentence(h_BTD)
        if pairs_B2 is not None and "next_sentence" in batch:
            loss = loss + _cross_entropy(pairs_B2, batch["next_sentence"]).mean() * len(labels_N)
        return loss, len(labels_N)

    def _encode(
        self, tokens_BT: Tensor, types_BT: Tensor | None, real_BT: Tensor | None, routings: list[Routing] | None
    ) -> Tensor:
        """Compute h_BTD after the last layer."""
        tokens = tokens_BT.shape[1]
        if tokens > self.config.context:
            raise ValueError(f"{tokens} tokens are more than the context of {self.config.context}")
        types_BTD = self.type_embedding.weight[0] if types_BT is None else self.type_embedding(types_BT)
        h_BTD = self.embedding(tokens_BT) + types_BTD + self.position_embedding.weight[:tokens]
        h_BTD = self.embedding_norm(h_BTD)
        seen_B11T = None if real_BT is None else real_BT[:, None, None]
        given = RouterInput(token_T=tokens_BT.flatten(), real_T=None if real_BT is None else real_BT.flatten())
        for layer in self.layers:
            h_BTD = layer(h_BTD, seen_B11T, given, routings)
        return h_BTD  # type: ignore[no-any-return]

    def _logits(self, h_ND: Tensor) -> Tensor:
        h_ND = self.head_norm(self.head_activation(self.head_dense(h_ND)))
        return F.linear(h_ND, self.embedding.weight, self.head_bias)

    def _next_sentence(self, h_BTD: Tensor) -> Tensor | None:
        if self.pooler is None or self.next_sentence is None:
            return None
        return self.next_sentence(self.pooler(h_BTD[:, 0]).tanh())  # type: ignore[no-any-return]


def initialize(model: nn.Module, std: float) -> None:
    """Draw matrices, tables and vectors from N(0, std²); biases are zero, norms one, routers see to their own."""
    routed = [module for module in model.modules() if isinstance(module, MoELayer)]
    of_routers = {parameter for layer in routed for parameter in layer.router.parameters()}
    of_norms = {
        parameter for module in model.modules() if isinstance(module, nn.LayerNorm) for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        if parameter in of_routers or parameter in of_norms:
            continue
        if is_bias(name):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)
    for layer in routed:
        layer.router.initialize(std)


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Compute -log p of each label, in at least fp32."""
    logits_NV = logits_NV.to(torch.promote_types(torch.float32, logits_NV.dtype))
    return F.cross_entropy(logits_NV, labels_N, reduction="none")
