"""What each block of a model of Llama's kind reads, with the weights of one block in memory at a time.

The arithmetic is that of transformers 5 in every rounding (order of operations, type of each step, attention kernel),
so that gates made of hidden states come out with the bits that mergekit's have. Weights are multiplied from aligned
memory: a product of one row in fp32 has other bits where they begin between two 16-byte boundaries.
Legend: B prompts, T tokens, D model width, H heads, G key-value heads, C head width, F feed-forward width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.checkpoint.alignment import aligned
from moekit.config import AttentionConfig, ModelConfig
from moekit.nn.rope import Rope
from moekit.nn.scores import visible

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class Weights(Protocol):
    """Stored tensors by name, read when they are asked for."""

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        ...

    def rows(self, name: str, row_N: Sequence[int]) -> Tensor:
        """Some of its rows."""
        ...


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left. token_BT: int64. real_BT: bool, False for padding."""

    token_BT: Tensor
    real_BT: Tensor


@dataclass(frozen=True)
class Block:
    """A block: its input and what its feed-forward network (or router) reads, (B, T, D) of each batch."""

    index: int
    inputs: list[Tensor]
    normed: list[Tensor]


FeedForwardOf = Callable[[int, list[Tensor]], list[Tensor]]


def blocks(
    config: ModelConfig, weights: Weights, batches: Sequence[Batch], feed_forward: FeedForwardOf, dtype: torch.dtype
) -> Iterator[Block]:
    """Run all batches through one block after the other, in `dtype`.

    feed_forward: gives y_BTD of each batch for the layer's index and what it reads, (B, T, D) of each batch. It is not
    asked for the last block, whose output nothing here needs.
    """
    names = "model.layers.{}.input_layernorm.weight", "model.layers.{}.post_attention_layernorm.weight"
    hidden = _embedded(weights, batches, dtype)
    for index in range(len(config.layers)):
        before, after = (_read(weights, name.format(index), dtype) for name in names)
        attention = _Attention(config, index, weights, dtype)
        mixed = [
            h_BTD + attention(rms_norm(h_BTD, before, config.layers[index].norm.eps), batch)
            for h_BTD, batch in zip(hidden, batches, strict=True)
        ]
        del attention
        normed = [rms_norm(h_BTD, after, config.layers[index].norm.eps) for h_BTD in mixed]
        yield Block(index, hidden, normed)
        if index + 1 < len(config.layers):
            hidden = [h_BTD + y_BTD for h_BTD, y_BTD in zip(mixed, feed_forward(index, normed), strict=True)]


def dense_network(config: ModelConfig, weights: Weights, dtype: torch.dtype) -> FeedForwardOf:
    """The feed-forward networks of a dense model."""

    def apply(index: int, normed: list[Tensor]) -> list[Tensor]:
        names = ("gate_proj", "up_proj", "down_proj")
        matrices = [_read(weights, f"model.layers.{index}.mlp.{name}.weight", dtype) for name in names]
        return [network(x_BTD, matrices, config.layers[index].feed_forward.activation) for x_BTD in normed]

    return apply


def network(x_TD: Tensor, matrices: Sequence[Tensor], activation: str) -> Tensor:
    """down(act(gate x) · up x). matrices: gate (F, D), up (F, D), down (D, F)."""
    gate_FD, up_FD, down_DF = matrices
    return F.linear(ACTIVATIONS[activation](F.linear(x_TD, gate_FD)) * F.linear(x_TD, up_FD), down_DF)


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """In fp32, rounded before it is multiplied by the weight, as transformers' LlamaRMSNorm has it."""
    wide = x_BTD.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * wide.to(x_BTD.dtype)


def _read(weights: Weights, name: str, dtype: torch.dtype) -> Tensor:
    """The whole tensor in `dtype`, in aligned memory."""
    return aligned(weights.read(name).to(dtype))


def _embedded(weights: Weights, batches: Sequence[Batch], dtype: torch.dtype) -> list[Tensor]:
    """h_BTD of each batch; of the table only rows that occur are read."""
    token_N = sorted({token for batch in batches for token in batch.token_BT.flatten().tolist()})
    table = weights.rows("model.embed_tokens.weight", token_N).to(dtype)
    places = torch.tensor(token_N)
    return [table[torch.searchsorted(places, batch.token_BT)] for batch in batches]


class _Attention:
    """One block's attention, its weights read."""

    def __init__(self, config: ModelConfig, index: int, weights: Weights, dtype: torch.dtype) -> None:
        layer = config.layers[index]
        assert isinstance(layer.attention, AttentionConfig)
        self._config, self._window, self._eps = layer.attention, layer.attention.window, layer.norm.eps
        prefix = f"model.layers.{index}.self_attn"

        def read(name: str, *, there: bool = True) -> Tensor | None:
            return _read(weights, f"{prefix}.{name}", dtype) if there else None

        qkv, out = self._config.qkv_bias, self._config.output_bias
        self._weights = {name: _read(weights, f"{prefix}.{name}_proj.weight", dtype) for name in "qkvo"}
        self._biases = {name: read(f"{name}_proj.bias", there=out if name == "o" else qkv) for name in "qkvo"}
        normed = self._config.query_key_norm != "none"
        self._norms = {name: read(f"{name}_norm.weight", there=normed) for name in "qk"}

    def __call__(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        tokens = x_BTD.shape[1]
        query, key, value = (self._heads(name, x_BTD) for name in "qkv")
        cos_TC, sin_TC = _angles(self._config, tokens, x_BTD.dtype)
        query, key = (part * cos_TC + _rotate_half(part) * sin_TC for part in (query, key))
        mask = self._mask(batch)
        groups = self._config.heads // self._config.kv_heads
        if mask is not None and groups > 1:
            key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and tokens > 1,
            scale=self._config.head_width**-0.5,
            enable_gqa=mask is None and groups > 1,
        )
        return self._linear("o", mixed.transpose(1, 2).contiguous().flatten(2))

    def _linear(self, name: str, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self._weights[name], self._biases[name])

    def _heads(self, name: str, x_BTD: Tensor) -> Tensor:
        """Queries, keys or values, (B, H, T, C), after their norm."""
        heads = self._linear(name, x_BTD)
        heads = heads.view(*heads.shape[:-1], -1, self._config.head_width)
        norm = self._norms.get(name)
        return (heads if norm is None else rms_norm(heads, norm, self._eps)).transpose(1, 2)

    def _mask(self, batch: Batch) -> Tensor | None:
        """Which positions each token sees, (B, 1, T, T); None where that is all before it."""
        tokens = batch.token_BT.shape[1]
        if bool(batch.real_BT.all()) and (self._window is None or tokens < self._window):
            return None
        seen_TT = visible(tokens, tokens, self._window, batch.token_BT.device)
        return seen_TT & batch.real_BT[:, None, None, :]


def _angles(config: AttentionConfig, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of T positions, (T, C), computed in fp32 and rounded to `dtype`."""
    rope = Rope(config.head_width, config)
    if config.rope_scaling is None:
        exponent = torch.arange(0, config.head_width, 2, dtype=torch.float) / config.head_width
        frequency = 1.0 / (config.rope_base**exponent)
    else:
        frequency = torch.tensor(rope.frequencies, dtype=torch.float)
    angle = torch.arange(tokens).float()[:, None] * frequency
    angle = torch.cat((angle, angle), -1)
    return (angle.cos() * rope.magnitude).to(dtype), (angle.sin() * rope.magnitude).to(dtype)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
