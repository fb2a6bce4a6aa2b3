"""Causal self-attention, with a key-value cache for decoding step by step.

B batch, T tokens, D model width, H query heads, G key-value heads, R = H / G, C head width, P positions in the cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import AttentionConfig
from moekit.nn.rotary import Rotary

# Up to this many tokens the gradient of plain products is 1.6 to 4 times as fast as that of torch's fused attention, on
# a CPU in bf16 (benchmarks/attention.py); beyond, their T² scores cost more than they save, in time and in memory.
_PLAIN_UP_TO = 256


class KeyValueCache:
    """Keys and values of one layer, written in place: room for `context` positions, `length` of them filled."""

    def __init__(self, batch: int, config: AttentionConfig, context: int, dtype: torch.dtype) -> None:
        shape = (batch, config.kv_heads, context, config.head_width)
        self.key_BGPC = torch.empty(shape, dtype=dtype)
        self.value_BGPC = torch.empty(shape, dtype=dtype)
        self.length = 0

    def append(self, key_BGTC: Tensor, value_BGTC: Tensor) -> tuple[Tensor, Tensor]:
        """Add T positions; give all that are held now. Raises ValueError where the context is full."""
        end = self.length + key_BGTC.shape[2]
        if end > self.key_BGPC.shape[2]:
            raise ValueError(f"{end} positions do not fit a context of {self.key_BGPC.shape[2]}")
        self.key_BGPC[:, :, self.length : end] = key_BGTC
        self.value_BGPC[:, :, self.length : end] = value_BGTC
        self.length = end
        return self.key_BGPC[:, :, :end], self.value_BGPC[:, :, :end]


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key-value heads (Ainslie et al., arXiv 2305.13245).

    query_key_value: one matrix of (H + 2 G) C rows, queries first, then keys, then values.
    """

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(width, (config.heads + 2 * config.kv_heads) * config.head_width, bias=False)
        self.output = nn.Linear(config.heads * config.head_width, width, bias=False)

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: KeyValueCache | None = None) -> Tensor:
        """y_BTD. With a cache, x holds the tokens that follow those in it."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        batch, tokens, _ = x_BTD.shape
        projected = self.query_key_value(x_BTD).view(batch, tokens, heads + 2 * kv_heads, -1).transpose(1, 2)
        turned = rotary(projected[:, : heads + kv_heads], cache.length if cache else 0)
        query_BHTC, key_BGPC, value_BGPC = turned[:, :heads], turned[:, heads:], projected[:, heads + kv_heads :]
        if cache:
            key_BGPC, value_BGPC = cache.append(key_BGPC, value_BGPC)
        mixed_BHTC = causal_attention(query_BHTC, key_BGPC, value_BGPC)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def causal_attention(query_BHTC: Tensor, key_BGPC: Tensor, value_BGPC: Tensor) -> Tensor:
    """softmax(q k / sqrt(C)) v for the last T of P positions, each seeing itself and those before it: y_BHTC."""
    tokens, positions = query_BHTC.shape[2], key_BGPC.shape[2]
    learns = torch.is_grad_enabled() and query_BHTC.requires_grad
    if learns and tokens == positions <= _PLAIN_UP_TO and query_BHTC.is_cpu and query_BHTC.dtype == torch.bfloat16:
        return plain_attention(query_BHTC, key_BGPC, value_BGPC)
    # Whole sequences have a fast path, and one token may see all: only a block in between needs a mask.
    mask_TP = None
    if 1 < tokens < positions:
        mask_TP = torch.ones(tokens, positions, dtype=torch.bool).tril(positions - tokens)
    return F.scaled_dot_product_attention(
        query_BHTC,
        key_BGPC,
        value_BGPC,
        attn_mask=mask_TP,
        is_causal=1 < tokens == positions,
        enable_gqa=query_BHTC.shape[1] != key_BGPC.shape[1],
    )


def plain_attention(query_BHTC: Tensor, key_BGTC: Tensor, value_BGTC: Tensor) -> Tensor:
    """The same for whole sequences as two batched products with a softmax between; keeps T² scores for the gradient."""
    batch, heads, tokens, width = query_BHTC.shape
    groups = batch * key_BGTC.shape[1]
    rows = heads // key_BGTC.shape[1] * tokens
    future_TT = query_BHTC.new_full((tokens, tokens), float("-inf")).triu(1)
    # The R heads that share a key head are R · T rows of one product.
    scores = torch.baddbmm(
        future_TT.repeat(rows // tokens, 1).expand(groups, rows, tokens),
        query_BHTC.reshape(groups, rows, width),
        key_BGTC.reshape(groups, tokens, width).transpose(1, 2),
        alpha=width**-0.5,
    )
    mixed = torch.bmm(scores.softmax(-1), value_BGTC.reshape(groups, tokens, width))
    return mixed.view(batch, heads, tokens, width)
