"""Causal self-attention with grouped queries, and its key-value cache for decoding step by step.

B batch, T tokens, D model width, H query heads, G key-value heads, R = H / G, C head width, P positions in the cache.
"""

import math

import torch
from torch import Tensor, nn

from moekit.config import AttentionConfig, NormConfig
from moekit.kernels.training.attention_passes import AttentionShape
from moekit.kernels.training.compiled import takes_floats
from moekit.nn.fused_attention import fused_attention
from moekit.nn.norm import RMSNorm
from moekit.nn.rope import RopeAngles
from moekit.nn.scores import Scores


class KeyValueCache:
    """The KV cache of a layer: keys and values of each position, written in place, with room for `context` positions.

    Args:
        batch: the number of sequences.
        heads: the number of key-value heads.
        widths: the widths of a key and of a value.
        context: the number of positions that there is room for.
        dtype: the type of the numbers.
    """

    def __init__(self, batch: int, heads: int, widths: tuple[int, int], context: int, dtype: torch.dtype) -> None:
        self.key_BGPC = torch.empty(batch, heads, context, widths[0], dtype=dtype)
        self.value_BGPC = torch.empty(batch, heads, context, widths[1], dtype=dtype)
        self.length = 0

    def append(self, key_BGTC: Tensor, value_BGTC: Tensor) -> tuple[Tensor, Tensor]:
        """Add T positions, and give all that are held now; raise ValueError where the context is full."""
        end = self.length + key_BGTC.shape[2]
        if end > self.key_BGPC.shape[2]:
            raise ValueError(f"{end} positions do not fit a context of {self.key_BGPC.shape[2]}")
        self.key_BGPC[:, :, self.length : end] = key_BGTC
        self.value_BGPC[:, :, self.length : end] = value_BGTC
        self.length = end
        return self.key_BGPC[:, :, :end], self.value_BGPC[:, :, :end]


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key-value heads (Ainslie et al., arXiv 2305.13245).

    query_key_value is one matrix of (H + 2 G) C rows, queries first, then keys, then values.

    Args:
        width: the width of the model, D.
        config: the configuration.
        norm: the norm of queries and keys, where the configuration asks for one: an RMSNorm in any case.
    """

    def __init__(self, width: int, config: AttentionConfig, norm: NormConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, head_width = config.heads, config.kv_heads, config.head_width
        self.query_key_value = nn.Linear(width, (heads + 2 * kv_heads) * head_width, bias=config.qkv_bias)
        self.output = nn.Linear(heads * head_width, width, bias=config.output_bias)
        self.query_norm: RMSNorm | None = None
        self.key_norm: RMSNorm | None = None
        if config.query_key_norm != "none":
            together = (heads, kv_heads) if config.query_key_norm == "all" else (1, 1)
            self.query_norm, self.key_norm = (
                RMSNorm(count * head_width, norm.eps, zero_centered=norm.zero_centered) for count in together
            )
        self.scores = Scores(
            scale=config.scale or 1 / math.sqrt(head_width),
            window=config.window,
            soft_cap=config.soft_cap,
            alibi_heads=heads if config.positions == "alibi" else 0,
        )
        self.fused: AttentionShape | None = None
        if config.soft_cap is None and config.positions != "alibi":
            self.fused = AttentionShape(heads=heads, kv_heads=kv_heads, scale=self.scores.scale, window=config.window)

    def forward(self, x_BTD: Tensor, angles: RopeAngles | None, cache: KeyValueCache | None = None) -> Tensor:
        """Compute y_BTD.

        Args:
            x_BTD: the input; with a cache, it follows the tokens in it.
            angles: the angles of the positions of x, where they are rotary.
            cache: the layer's KV cache, which is extended.
        """
        heads, kv_heads = self.config.heads, self.config.kv_heads
        batch, tokens, _ = x_BTD.shape
        projected = self._normed(self.query_key_value(x_BTD))
        if cache is None and self.fused is not None and takes_floats(projected):
            mixed = fused_attention(projected, angles, self.fused)
            return self.output(mixed)  # type: ignore[no-any-return]
        projected = projected.view(batch, tokens, heads + 2 * kv_heads, -1).transpose(1, 2)
        queries_keys = projected[:, : heads + kv_heads]
        if angles:
            queries_keys = angles.rotate(queries_keys)
        query_BHTC, key_BGPC = queries_keys[:, :heads], queries_keys[:, heads:]
        value_BGPC = projected[:, heads + kv_heads :]
        if cache:
            key_BGPC, value_BGPC = cache.append(key_BGPC, value_BGPC)
        mixed_BHTC = self.scores.mix(query_BHTC, key_BGPC, value_BGPC)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def new_cache(self, batch: int, context: int, dtype: torch.dtype) -> KeyValueCache:
        """Make an empty cache for `batch` sequences."""
        width = self.config.head_width
        return KeyValueCache(batch, self.config.kv_heads, (width, width), context, dtype)

    def _normed(self, projected_BTN: Tensor) -> Tensor:
        """Apply the norms of queries and keys, where there are any."""
        if self.query_norm is None or self.key_norm is None:
            return projected_BTN
        query_rows, key_rows = self.config.heads * self.config.head_width, self.config.kv_heads * self.config.head_width
        query, key, value = torch.split(projected_BTN, [query_rows, key_rows, key_rows], -1)
        shape = (*projected_BTN.shape[:-1], -1)
        query, key = (
            norm(part.reshape(*shape, norm.weight.numel())).flatten(2)
            for norm, part in ((self.query_norm, query), (self.key_norm, key))
        )
        return torch.cat((query, key, value), -1)
