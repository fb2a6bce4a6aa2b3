"""XLNet: two streams of attention, so that a token can be predicted from any others without being seen.

B batch, T tokens, M predicted positions, N = T + M rows of both streams, K keys (memory, then tokens), P distances, D
model width, H heads, C head width, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config.xlnet import XLNetConfig
from moekit.kernels.backends import Backend
from moekit.models.encoder import PostNormFeedForward, initialize
from moekit.models.language_model import LanguageModel
from moekit.moe import MoELayer, RouterInput, Routing


class XLNetOutput(NamedTuple):
    """XLNet's predictions.

    Attributes:
        logits: the logits of the M predicted positions (B, M, V), of all T where there are none.
        memories: one a layer, or None.
    """

    logits: Tensor
    memories: list[Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Places:
    """The positions of rows and keys, the same in every layer.

    Where all sequences agree the first dimension may be 1.

    Attributes:
        distances_PD: sinusoids of the distances K … -T + 1.
        distance_BNK: which of them lies between a row and a key.
        hidden_BNK: bool, the keys that a row does not see, None where it sees all.
        differs_BNK: bool, whether the key is of another segment, None where there are no segments.
    """

    distances_PD: Tensor
    distance_BNK: Tensor
    hidden_BNK: Tensor | None
    differs_BNK: Tensor | None


class RelativeAttention(nn.Module):
    """Attention by content, relative position and segment.

    score = ((q + u)·k + (q + v)·W_r R(i - j) + (q + w)·s[same or different segment]) / sqrt(C) (Transformer-XL, arXiv
    1901.02860, section 3.3; segments: XLNet, arXiv 1906.08237, section 2.5). key_value is one matrix, keys first; u, v,
    w are content_bias, position_bias, segment_bias.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.position_key = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.content_bias_HC = nn.Parameter(torch.empty(heads, width // heads))
        self.position_bias_HC = nn.Parameter(torch.empty(heads, width // heads))
        self.segment_bias_HC = nn.Parameter(torch.empty(heads, width // heads))
        self.segment_2HC = nn.Parameter(torch.empty(2, heads, width // heads))

    def forward(self, x_BND: Tensor, source_BKD: Tensor, places: Places) -> Tensor:
        """Compute y_BND, where the rows x attend to `source`."""
        query_BHNC = self.query(x_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_value = self.key_value(source_BKD).unflatten(-1, (2, self.heads, -1))
        key_BHKC, value_BHKC = key_value.permute(2, 0, 3, 1, 4).unbind()
        scores_BHNK = (query_BHNC + self.content_bias_HC[:, None]) @ key_BHKC.transpose(2, 3)
        scores_BHNK = scores_BHNK + self._of_positions(query_BHNC, places)
        if places.differs_BNK is not None:
            of_segments = (query_BHNC + self.segment_bias_HC[:, None]) @ self.segment_2HC.permute(1, 2, 0)
            same_BHN1, different_BHN1 = of_segments.split(1, -1)
            scores_BHNK = scores_BHNK + torch.where(places.differs_BNK[:, None], different_BHN1, same_BHN1)
        share_BHNK = _softmax(scores_BHNK / math.sqrt(query_BHNC.shape[-1]), places.hidden_BNK)
        mixed_BHNC = share_BHNK.to(value_BHKC.dtype) @ value_BHKC
        return self.output(mixed_BHNC.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _of_positions(self, query_BHNC: Tensor, places: Places) -> Tensor:
        """Score every key by its distance."""
        key_HCP: Tensor = self.position_key(places.distances_PD).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        scores_BHNP = (query_BHNC + self.position_bias_HC[:, None]) @ key_HCP
        distance_BHNK = places.distance_BNK[:, None].expand(*scores_BHNP.shape[:3], -1)
        return scores_BHNP.gather(-1, distance_BHNK)


class XLNetLayer(nn.Module):
    """A layer in which both streams are rows of one attention; keys and values are of memory and the content stream."""

    def __init__(self, config: XLNetConfig, index: int, backend: Backend) -> None:
        super().__init__()
        self.attention = RelativeAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.feed_forward = PostNormFeedForward(
            config.width,
            config.layers[index],
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            backend=backend,
        )

    def forward(
        self, x_BND: Tensor, source_BKD: Tensor, places: Places, given: RouterInput, routings: list[Routing] | None
    ) -> Tensor:
        """Compute x_BND after this layer."""
        x_BND = self.attention_norm(x_BND + self.attention(x_BND, source_BKD, places))
        return self.feed_forward(x_BND, given, routings)  # type: ignore[no-any-return]


class XLNet(LanguageModel):
    """XLNet built from `config`, its weights drawn from torch's current seed.

    Args:
        config: the configuration.
        backend: the kernels that compute the experts, where there are any.
    """

    config: XLNetConfig

    def __init__(self, config: XLNetConfig, backend: Backend = "fastest") -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.mask_embedding = nn.Parameter(torch.empty(config.width))
        self.layers = nn.ModuleList(XLNetLayer(config, index, backend) for index in range(len(config.layers)))
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialize(self, config.init_std)

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The layers that have experts, in the order in which their Routings come."""
        return [module for module in self.layers.modules() if isinstance(module, MoELayer)]

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        perm_mask_BTT: Tensor | None = None,
        targets_BM: Tensor | None = None,
        types_BT: Tensor | None = None,
        real_BT: Tensor | None = None,
        memories: Sequence[Tensor] | None = None,
        remember: bool = False,
        routings: list[Routing] | None = None,
    ) -> XLNetOutput:
        """Compute the logits of the targets from the query stream; without targets, those of all positions.

        Args:
            tokens_BT: int64 ids.
            perm_mask_BTT: [b, i, j] is true where position i must not see position j. The content stream sees itself
                all the same; the query stream sees its own token unless the diagonal hides it. A query that sees
                nothing gets no attention (XLNet's own code spreads it over all keys, its own token among them).
            targets_BM: int64, the predicted positions: where `target_mapping` of XLNet's code has its ones. Without
                them, each position is predicted from its content.
            types_BT: int64, the segments; memories count as segment 0.
            real_BT: bool, False for padding, which nobody sees.
            memories: one tensor (B, positions, D) a layer, from `remember` of the pass over the text before.
            remember: give the memories for the text that follows, without gradients.
            routings: a list that gets one Routing an MoE layer appended: of all tokens, then all targets, a sequence at
                a time.
        """
        tokens = tokens_BT.shape[1]
        before = memories[0].shape[1] if memories else 0
        x_BND = self.embedding(tokens_BT)
        real_BN = real_BT
        if targets_BM is not None:
            x_BND = torch.cat((x_BND, self.mask_embedding.expand(*targets_BM.shape, -1)), 1)
            if real_BT is not None:
                real_BN = torch.cat((real_BT, torch.ones_like(targets_BM, dtype=torch.bool)), 1)
        hidden_BTT = _hidden(perm_mask_BTT, real_BT, self.config.attention == "causal", tokens_BT)
        places = self._places(hidden_BTT, targets_BM, types_BT, before, tokens_BT, x_BND.dtype)
        given = RouterInput(real_T=None if real_BN is None else real_BN.flatten())
        new_memories: list[Tensor] | None = [] if remember else None
        for index, layer in enumerate(self.layers):
            content_BTD = x_BND[:, :tokens]
            source_BKD = content_BTD if not memories else torch.cat((memories[index], content_BTD), 1)
            if new_memories is not None:
                new_memories.append(self._remembered(content_BTD, memories[index] if memories else None))
            x_BND = layer(x_BND, source_BKD, places, given, routings)
        predicted = x_BND if targets_BM is None else x_BND[:, tokens:]
        return XLNetOutput(F.linear(predicted, self.embedding.weight, self.head_bias), new_memories)

    def log_prob(self, tokens_BT: Tensor) -> Tensor:
        """Compute log p in nats of each token but the first given those before it: shape (B, T - 1), at least fp32.

        This is one of the factorisations that the model learns, the one from left to right, in one pass of two streams.
        """
        batch, tokens = tokens_BT.shape
        place_T = torch.arange(tokens, device=tokens_BT.device)
        perm_mask_1TT = perm_mask(place_T[None])
        targets_BM = place_T[1:].expand(batch, -1)
        return self._scores(tokens_BT, self(tokens_BT, perm_mask_BTT=perm_mask_1TT, targets_BM=targets_BM), targets_BM)

    def loss(self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None) -> tuple[Tensor, int]:
        """Compute the loss of permutation language modelling on a batch of `moekit.data.objectives.permutation`.

        It is the sum of -log p in nats of its targets given the tokens before them in the order of factorisation (eq.
        5), and their number.
        """
        tokens_BT, targets_BM = batch["tokens"], batch["targets"]
        output = self(
            tokens_BT,
            perm_mask_BTT=perm_mask(batch["rank"]),
            targets_BM=targets_BM,
            types_BT=batch.get("types"),
            real_BT=batch.get("real"),
            routings=routings,
        )
        return -self._scores(tokens_BT, output, targets_BM).sum(), targets_BM.numel()

    def _places(
        self,
        hidden_BTT: Tensor | None,
        targets_BM: Tensor | None,
        types_BT: Tensor | None,
        before: int,
        tokens_BT: Tensor,
        dtype: torch.dtype,
    ) -> Places:
        """Find the positions of T content rows, then M query rows, with `before` remembered keys before the tokens."""
        device, tokens = tokens_BT.device, tokens_BT.shape[1]
        keys = before + tokens
        row_BN = torch.arange(tokens, device=device)[None]
        hidden_BNK = None if hidden_BTT is None else hidden_BTT & ~torch.eye(tokens, dtype=torch.bool, device=device)
        type_BN = types_BT
        if targets_BM is not None:
            row_BN = torch.cat((row_BN.expand(len(targets_BM), -1), targets_BM), 1)
            if hidden_BTT is not None and hidden_BNK is not None:
                of_targets = _rows(hidden_BTT.expand(len(targets_BM), -1, -1), targets_BM)
                hidden_BNK = torch.cat((hidden_BNK.expand(len(targets_BM), -1, -1), of_targets), 1)
            if types_BT is not None:
                type_BN = torch.cat((types_BT, types_BT.gather(1, targets_BM)), 1)
        differs_BNK = None
        if types_BT is not None and type_BN is not None:
            differs_BNK = type_BN[:, :, None] != F.pad(types_BT, (before, 0))[:, None]
        distance_P = torch.arange(keys, -tokens, -1, device=device)
        if self.config.clamp is not None:
            distance_P = distance_P.clamp(-self.config.clamp, self.config.clamp)
        return Places(
            distances_PD=_sinusoids(distance_P, self.config.width).to(dtype),
            # From key j to row i of the tokens it is before + i - j, which stands at K minus that.
            distance_BNK=torch.arange(keys, device=device) + tokens - row_BN[:, :, None],
            hidden_BNK=None if hidden_BNK is None else F.pad(hidden_BNK, (before, 0)),
            differs_BNK=differs_BNK,
        )

    def _remembered(self, content_BTD: Tensor, memory: Tensor | None) -> Tensor:
        """Keep what the next segment sees of this one and of those before it."""
        kept = content_BTD[:, : self.config.reuse]
        kept = kept if memory is None else torch.cat((memory, kept), 1)
        return (kept if self.config.memory is None else kept[:, -self.config.memory :]).detach()

    def _scores(self, tokens_BT: Tensor, output: XLNetOutput, targets_BM: Tensor) -> Tensor:
        """Compute log p of the targets, (B, M), at least fp32."""
        logits = output.logits.to(torch.promote_types(torch.float32, output.logits.dtype))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens_BT.gather(1, targets_BM).flatten(), reduction="none")
        return -loss.view(targets_BM.shape)


def perm_mask(rank_BT: Tensor) -> Tensor:
    """Make perm_mask_BTT of an order of factorisation: rank 0 is seen by all, others by those of a higher rank.

    The tokens that are only context have rank 0, so they see each other, as in XLNet's code (`_local_perm`).
    """
    return (rank_BT[:, None] >= rank_BT[:, :, None]) & (rank_BT[:, None] > 0)


def _hidden(perm_mask_BTT: Tensor | None, real_BT: Tensor | None, causal: bool, tokens_BT: Tensor) -> Tensor | None:
    """Mark what a query at a position must not see, (B or 1, T, T); None for nothing."""
    tokens, device = tokens_BT.shape[1], tokens_BT.device
    hidden = None if perm_mask_BTT is None else perm_mask_BTT.bool()
    if real_BT is not None:
        padding = ~real_BT[:, None].expand(-1, tokens, -1)
        hidden = padding if hidden is None else hidden | padding
    if causal:
        future = torch.ones(1, tokens, tokens, dtype=torch.bool, device=device).triu(1)
        hidden = future if hidden is None else hidden | future
    return hidden


def _rows(matrix_BTT: Tensor, rows_BM: Tensor) -> Tensor:
    return matrix_BTT.gather(1, rows_BM[:, :, None].expand(-1, -1, matrix_BTT.shape[2]))


def _sinusoids(distance_P: Tensor, width: int) -> Tensor:
    """Compute sin, then cos, of the distance times 10000^(-2i / D), i < D / 2, in fp32."""
    frequency = 10_000 ** -(torch.arange(0, width, 2, device=distance_P.device) / width)
    angle = distance_P[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)


def _softmax(scores_BHNK: Tensor, hidden_BNK: Tensor | None) -> Tensor:
    """Compute the softmax over the keys that are not hidden, in at least fp32; zeros for a row that sees none."""
    dtype = torch.promote_types(torch.float32, scores_BHNK.dtype)
    if hidden_BNK is None:
        return scores_BHNK.softmax(-1, dtype=dtype)
    hidden_B1NK = hidden_BNK[:, None]
    # Finite, so that a row which sees nothing has gradients that are zeros and no NaN.
    share = scores_BHNK.masked_fill(hidden_B1NK, torch.finfo(scores_BHNK.dtype).min).softmax(-1, dtype=dtype)
    return share.masked_fill(hidden_B1NK, 0)
