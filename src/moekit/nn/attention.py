"""Causal self-attention, with a key-value cache for decoding step by step.

B batch, T tokens, D model width, H query heads, G key-value heads, C head width, P positions held in the cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import AttentionConfig
from moekit.nn.rotary import Rotary


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
    """Grouped-query attention: H query heads share G key-value heads (Ainslie et al., arXiv 2305.13245)."""

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.heads * config.head_width, bias=False)
        self.key = nn.Linear(width, config.kv_heads * config.head_width, bias=False)
        self.value = nn.Linear(width, config.kv_heads * config.head_width, bias=False)
        self.output = nn.Linear(config.heads * config.head_width, width, bias=False)

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: KeyValueCache | None = None) -> Tensor:
        """y_BTD. With a cache, x holds the tokens that follow those in it."""
        start = cache.length if cache else 0
        query_BHTC = rotary(self._heads(self.query(x_BTD)), start)
        key_BGPC = rotary(self._heads(self.key(x_BTD)), start)
        value_BGPC = self._heads(self.value(x_BTD))
        if cache:
            key_BGPC, value_BGPC = cache.append(key_BGPC, value_BGPC)
        tokens, positions = x_BTD.shape[1], key_BGPC.shape[2]
        # Token t may see the positions up to start + t; one token may see all, whole sequences have a fast path.
        mask_TP = None
        if 1 < tokens < positions:
            mask_TP = torch.ones(tokens, positions, dtype=torch.bool).tril(start)
        mixed_BHTC = F.scaled_dot_product_attention(
            query_BHTC,
            key_BGPC,
            value_BGPC,
            attn_mask=mask_TP,
            is_causal=tokens == positions and tokens > 1,
            enable_gqa=self.config.heads != self.config.kv_heads,
        )
        return self.output(mixed_BHTC.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        return x_BTD.view(batch, tokens, width // self.config.head_width, self.config.head_width).transpose(1, 2)
