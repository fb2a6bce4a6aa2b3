"""Softmax attention over keys and values: the mask, and the shape of scores before the softmax.

B batch, T tokens, H query heads, G key-value heads, R = H / G, C head width, P positions that can be seen.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this many tokens the gradient of plain products is 1.6 to 4 times as fast as that of torch's fused attention, on
# a CPU in bf16 (benchmarks/attention.py); beyond, their T² scores cost more than they save, in time and in memory. It
# matters where attention is not compiled (fused_attention.py).
_PLAIN_UP_TO = 256


@dataclass(frozen=True, kw_only=True)
class Scores:
    """softmax(shape(q k · scale)) v, causal: the last T of P positions, each seeing itself and those before it.

    Attributes:
        scale: the factor of the scores.
        window: how many positions each sees at most, itself included.
        soft_cap: scores become cap · tanh(score / cap).
        alibi_heads: the number of heads with a penalty on distance; 0 for none.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi_heads: int = 0

    def mix(self, query_BHTC: Tensor, key_BGPC: Tensor, value_BGPC: Tensor) -> Tensor:
        """Compute y_BHTC, with the head width of the values."""
        tokens, positions = query_BHTC.shape[2], key_BGPC.shape[2]
        if self.soft_cap is not None:
            return self._capped(query_BHTC, key_BGPC, value_BGPC)
        learns = torch.is_grad_enabled() and query_BHTC.requires_grad
        short = tokens == positions <= _PLAIN_UP_TO and not self.alibi_heads
        if learns and short and query_BHTC.is_cpu and query_BHTC.dtype == torch.bfloat16:
            return plain_attention(query_BHTC, key_BGPC, value_BGPC, self.scale, self.window)
        mask = self._mask(query_BHTC, positions)
        return F.scaled_dot_product_attention(
            query_BHTC,
            key_BGPC,
            value_BGPC,
            attn_mask=mask,
            is_causal=mask is None and tokens > 1,
            scale=self.scale,
            enable_gqa=query_BHTC.shape[1] != key_BGPC.shape[1],
        )

    def _mask(self, query_BHTC: Tensor, positions: int) -> Tensor | None:
        """Compute what is added to scores, or bool where that is all.

        It is None for a whole sequence, or a token that sees all.
        """
        tokens, device = query_BHTC.shape[2], query_BHTC.device
        windowed = self.window is not None and self.window < positions
        if self.alibi_heads:
            seen_TP = visible(tokens, positions, self.window, device)
            penalty_H1P = alibi(self.alibi_heads, positions, device)[:, None].to(query_BHTC.dtype) * self.scale
            return penalty_H1P.expand(-1, tokens, -1).masked_fill(~seen_TP, -torch.inf)
        # Whole sequences have a fast path, and one token may see all: only what lies between needs a mask.
        if not windowed and tokens in (1, positions):
            return None
        return visible(tokens, positions, self.window, device)

    def _capped(self, query_BHTC: Tensor, key_BGPC: Tensor, value_BGPC: Tensor) -> Tensor:
        """Compute y_BHTC in fp32 up to the softmax, as Grok-1 does: the mask comes after the cap."""
        assert self.soft_cap is not None
        batch, heads, tokens, _ = query_BHTC.shape
        at_least = torch.promote_types(torch.float32, query_BHTC.dtype)
        grouped = query_BHTC.reshape(batch, key_BGPC.shape[1], -1, query_BHTC.shape[3]).to(at_least)
        scores = (grouped @ key_BGPC.to(at_least).transpose(2, 3)).mul(self.scale)
        scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
        scores = scores.view(batch, heads, tokens, -1)
        hidden_TP = ~visible(tokens, key_BGPC.shape[2], self.window, query_BHTC.device)
        share = scores.masked_fill(hidden_TP, -torch.inf).softmax(-1).to(value_BGPC.dtype)
        mixed = share.view(batch, key_BGPC.shape[1], -1, key_BGPC.shape[2]) @ value_BGPC
        return mixed.view(batch, heads, tokens, -1)


def visible(tokens: int, positions: int, window: int | None, device: torch.device) -> Tensor:
    """Compute seen_TP, the causal mask as bool: which of P positions each of the last T sees."""
    seen_TP = torch.ones(tokens, positions, dtype=torch.bool, device=device).tril(positions - tokens)
    return seen_TP if window is None else seen_TP.triu(positions - tokens - window + 1)


def alibi(heads: int, positions: int, device: torch.device) -> Tensor:
    """Compute the penalty of scores before they are scaled, (H, P): slope · position (Press et al., arXiv 2108.12409).

    It is rounded to bfloat16 as in Falcon's implementation: its models were trained so, and positions beyond 256 show
    it. Slopes (section 3) are 2^(-8/n · i) for the largest power of two n within H, those between for the heads that
    remain.
    """
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 / whole * (index + 1)) for index in range(whole)]
    slopes += [2 ** (-4 / whole * (2 * index + 1)) for index in range(heads - whole)]
    slope_H1 = torch.tensor(slopes, device=device)[:, None].bfloat16()
    return slope_H1 * torch.arange(positions, device=device)


def plain_attention(
    query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Compute causal attention of whole sequences as two batched products with a softmax between.

    It keeps T² scores for the gradient.
    """
    batch, heads, tokens, width = query_BHTC.shape
    groups = batch * key_BGTC.shape[1]
    rows = heads // key_BGTC.shape[1] * tokens
    hidden_TT = ~visible(tokens, tokens, window, query_BHTC.device)
    bias_TT = query_BHTC.new_zeros(tokens, tokens).masked_fill_(hidden_TT, -torch.inf)
    # The R heads that share a key head are R · T rows of one product.
    scores = torch.baddbmm(
        bias_TT.repeat(rows // tokens, 1).expand(groups, rows, tokens),
        query_BHTC.reshape(groups, rows, width),
        key_BGTC.reshape(groups, tokens, width).transpose(1, 2),
        alpha=scale,
    )
    mixed = torch.bmm(scores.softmax(-1), value_BGTC.reshape(groups, tokens, -1))
    return mixed.view(batch, heads, tokens, -1)
