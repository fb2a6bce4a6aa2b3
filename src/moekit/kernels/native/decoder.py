"""Decoding by one native call a step: all layers, for one more token of each of several sequences.

B sequences, T tokens, P positions in a cache, D model width, H query heads, G key-value heads, C head width, F hidden
width, E experts, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from moekit.config import (
    ActivationName,
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    ModelConfig,
    MoEConfig,
    SoftmaxTopKConfig,
)
from moekit.config.frequencies import Frequencies, rotary_frequencies
from moekit.kernels.native.module import native
from moekit.kernels.native.weights import DecoderWeights, LayerWeights, MoEWeights, NetworkWeights
from moekit.kernels.packed import Bytes, Numbers, PackedMatrix

CacheKind = Literal["fp32", "bf16", "q8"]

# The numbers by which the native code knows them.
_CACHE_KINDS: dict[CacheKind, int] = {"fp32": 0, "bf16": 1, "q8": 2}
_FUNCTIONS: dict[ActivationName, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}

_WIDEST_HEAD = 1024


def unsupported(config: ModelConfig) -> str | None:
    """Why the native decoder cannot compute that model, in words that follow "because"; None where it can."""
    first = config.layers[0]
    attention = first.attention
    if not isinstance(attention, AttentionConfig):
        return "its attention is latent"
    if attention.positions == "alibi" or config.learned_positions:
        return "its positions are not rotary"
    if attention.head_width > _WIDEST_HEAD:
        return f"its heads are wider than {_WIDEST_HEAD}"
    for layer in config.layers:
        if layer.attention.model_copy(update={"window": attention.window}) != attention:
            return "its layers' attention differs in more than the window"
        if (layer.block, layer.norm) != (first.block, config.norm):
            return "its layers differ in their norms"
    if first.block not in ("pre", "sandwich"):
        return f"its blocks are {first.block}"
    if config.norm.kind != "rms":
        return f"its norm is {config.norm.kind}"
    reasons = (_unsupported_layer(layer) for layer in config.feed_forwards)
    return next((reason for reason in reasons if reason), None)


def _unsupported_layer(layer: FeedForwardConfig) -> str | None:
    if layer.bias:
        return "its feed-forward networks have biases"
    if isinstance(layer, DenseConfig):
        return None
    if not isinstance(layer.router, SoftmaxTopKConfig):
        return f"its router is {layer.router.kind}"
    if layer.router.capacity_factor is not None:
        return "its experts have a capacity"
    return "its branch is residual" if layer.branch == "residual" else None


class NativeCache:
    """Keys and values of one sequence, all layers; memory is taken 256 positions at a time, as they come."""

    def __init__(self, config: ModelConfig, kind: CacheKind) -> None:
        attention = config.layers[0].attention
        assert isinstance(attention, AttentionConfig)
        self.kv_heads, self.head_width = attention.kv_heads, attention.head_width
        layers = len(config.layers)
        self.native = native().Cache(_CACHE_KINDS[kind], layers, self.kv_heads, self.head_width, config.context)

    @property
    def length(self) -> int:
        """Tokens seen."""
        return int(self.native.length)

    @property
    def bytes(self) -> int:
        """That it takes now."""
        return int(self.native.bytes)

    def truncate(self, length: int) -> None:
        """Forget what comes after the first `length` tokens."""
        self.native.truncate(length)

    def read(self, layer: int, tokens: int) -> tuple[Numbers, Numbers]:
        """key_GPC, turned, and value_GPC of the first P = `tokens` positions, as they are kept."""
        key_GPC, value_GPC = np.empty((2, self.kv_heads, tokens, self.head_width), np.float32)
        for values, rows_GPC in enumerate((key_GPC, value_GPC)):
            self.native.read(layer, bool(values), tokens, rows_GPC.ctypes.data)
        return key_GPC, value_GPC


class NativeDecoder:
    """A decoder of packed weights. Raises ValueError where they do not have the configuration's shapes."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        reason = unsupported(config)
        if reason:
            raise ValueError(f"the native decoder cannot compute this model because {reason}")
        self.config = config
        parts = _Parts(config)
        shape = parts.shape(weights)
        layers = [parts.layer(index, layer) for index, layer in enumerate(weights.layers)]
        if len(layers) != len(config.layers):
            raise ValueError(f"weights of {len(layers)} layers do not make a model of {len(config.layers)}")
        # The native side knows addresses only.
        self._kept = parts.kept
        self._native = native().Decoder(shape, layers)

    def new_cache(self, kind: CacheKind | None = None) -> NativeCache:
        """An empty one, for one sequence; by default fp32 where the model's matrices are, else bf16.

        q8: 8 bits with a scale for each 32 numbers, 9 bits in all.
        """
        return NativeCache(self.config, kind or ("fp32" if self._native.fp32 else "bf16"))

    def decode(self, caches: Sequence[NativeCache], tokens_B: Sequence[int]) -> Numbers:
        """logits_BV after one more token of each sequence, whose caches are extended.

        Raises ValueError where a context is full, IndexError where a token is not in the vocabulary: nothing has
        changed then. Other Python threads run meanwhile; of several calls, one computes at a time.
        """
        if len(caches) != len(tokens_B):
            raise ValueError(f"{len(caches)} caches are not those of {len(tokens_B)} tokens")
        logits_BV = np.empty((len(caches), self.config.vocab_size), np.float32)
        self._native.decode([cache.native for cache in caches], list(tokens_B), logits_BV.ctypes.data)
        return logits_BV

    def prefill(self, cache: NativeCache, tokens_T: Sequence[int]) -> Numbers:
        """logits_V after the last of tokens_T, at least one, by which the sequence is extended. Raises like `decode`.

        With fp32 matrices everything is fp32. Otherwise the layers' products are bf16 where the processor multiplies
        such numbers, else fp32; sums are fp32, and the head's product is that of a step.
        """
        logits_V = np.empty(self.config.vocab_size, np.float32)
        self._native.prefill(cache.native, list(tokens_T), logits_V.ctypes.data)
        return logits_V

    def extend(self, cache: NativeCache, tokens_T: Sequence[int]) -> None:
        """`prefill` without the logits."""
        self._native.prefill(cache.native, list(tokens_T), 0)


class _Parts:
    """Weights as the native side takes them, checked against the configuration."""

    def __init__(self, config: ModelConfig) -> None:
        attention = config.layers[0].attention
        assert isinstance(attention, AttentionConfig)
        self.config, self.attention = config, attention
        self.query_rows = self.attention.heads * self.attention.head_width
        self.key_rows = self.attention.kv_heads * self.attention.head_width
        self.kept: list[Bytes | Numbers] = []

    def shape(self, weights: DecoderWeights) -> dict[str, Any]:
        """What is not of one layer."""
        config, attention = self.config, self.attention
        frequencies = Frequencies([], 1.0)
        if attention.positions == "rotary":
            frequencies = rotary_frequencies(attention.head_width, attention)
        return {
            "width": config.width,
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "head_width": attention.head_width,
            "norm_eps": config.norm.eps,
            "attention_scale": attention.scale or attention.head_width**-0.5,
            "soft_cap": attention.soft_cap or 0.0,
            "norm_all_heads": attention.query_key_norm == "all",
            "rope_interleaved": weights.interleaved,
            "rope_frequencies": frequencies.values,
            "rope_magnitude": frequencies.magnitude,
            "embedding_scale": config.embedding_scale,
            "logit_scale": config.logit_scale,
            "embedding": self._matrix("embedding", weights.embedding, config.vocab_size, config.width),
            "head": self._matrix("head", weights.head, config.vocab_size, config.width),
            "norm": self._vector("norm", weights.norm_D, config.width),
        }

    def layer(self, index: int, weights: LayerWeights) -> dict[str, Any]:
        """The parts of one layer; those that it lacks are left out."""
        config = self.config
        sandwich = config.layers[index].block == "sandwich"
        after = {"attention": weights.attention_after_norm_D, "ffn": weights.feed_forward_after_norm_D}
        parts = {
            "attention_norm": self._vector("attention_norm", weights.attention_norm_D, config.width),
            "ffn_norm": self._vector("feed_forward_norm", weights.feed_forward_norm_D, config.width),
            "window": config.layers[index].attention.window or 0,
            **{
                f"{name}_post_norm": self._vector(f"{name}_after_norm", norm_D, config.width)
                for name, norm_D in after.items()
                if sandwich
            },
            **self._attention(weights),
        }
        layer = config.feed_forwards[index]
        parts["function"] = _FUNCTIONS[layer.activation]
        if isinstance(layer, MoEConfig) and isinstance(weights.feed_forward, MoEWeights):
            return parts | self._moe(layer, weights.feed_forward)
        if isinstance(layer, DenseConfig) and isinstance(weights.feed_forward, NetworkWeights):
            return parts | self._network("", weights.feed_forward, layer, experts=1)
        raise ValueError(f"the weights of layer {index} are not those of a layer of kind {layer.kind}")

    def _attention(self, layer: LayerWeights) -> dict[str, Any]:
        width, attention, weights = self.config.width, self.attention, layer.attention
        rows = {"query": self.query_rows, "key": self.key_rows, "value": self.key_rows, "output": width}
        parts: dict[str, Any] = {}
        for name, count in rows.items():
            columns = self.query_rows if name == "output" else width
            parts[name] = self._matrix(name, getattr(weights, name), count, columns)
            if attention.output_bias if name == "output" else attention.qkv_bias:
                parts[f"{name}_bias"] = self._vector(f"{name}_bias", getattr(weights, f"{name}_bias"), count)
        if attention.query_key_norm != "none":
            for name in ("query", "key"):
                count = rows[name] if attention.query_key_norm == "all" else attention.head_width
                parts[f"{name}_norm"] = self._vector(f"{name}_norm", getattr(weights, f"{name}_norm"), count)
        return parts

    def _moe(self, layer: MoEConfig, weights: MoEWeights) -> dict[str, Any]:
        assert isinstance(layer.router, SoftmaxTopKConfig)
        expert = DenseConfig(width=layer.expert_width, activation=layer.activation, gated=layer.gated)
        parts = {
            "experts": layer.experts,
            "top_k": layer.router.top_k,
            "renormalize": layer.router.renormalize,
            "router": self._matrix("router", weights.router, layer.experts, self.config.width),
            **self._network("", weights.experts, expert, layer.experts),
        }
        if layer.branch != "none":
            parts |= self._network("shared_expert_", weights.shared_expert, layer.dense_branch, experts=1)
        if layer.branch == "gated_shared":
            parts["gate_of_shared_expert"] = self._vector(
                "shared_expert_gate", weights.shared_expert_gate_D, self.config.width
            )
        return parts

    def _network(self, prefix: str, weights: NetworkWeights | None, layer: DenseConfig, experts: int) -> dict[str, Any]:
        if weights is None:
            raise ValueError("weights of the shared expert are missing")
        width, hidden = self.config.width, layer.width
        parts = {
            f"{prefix}up": self._matrix(f"{prefix}up", weights.up, experts * hidden, width),
            f"{prefix}down": self._matrix(f"{prefix}down", weights.down, experts * width, hidden),
        }
        if layer.gated:
            parts[f"{prefix}gate"] = self._matrix(f"{prefix}gate", weights.gate, experts * hidden, width)
        return parts

    def _matrix(self, name: str, matrix: PackedMatrix | None, rows: int, columns: int) -> Any:
        if matrix is None:
            raise ValueError(f"the matrix {name} is missing")
        if (matrix.rows, matrix.columns) != (rows, columns):
            raise ValueError(f"{name} is {matrix.rows} x {matrix.columns} where {rows} x {columns} are needed")
        data_RB = matrix.data_RB
        if data_RB.dtype != np.uint8 or not data_RB.flags.c_contiguous:
            raise ValueError(f"{name} must be bytes, row after row")
        self.kept.append(data_RB)
        return native().Matrix.at(data_RB.ctypes.data, matrix.type.code, rows, columns)

    def _vector(self, name: str, vector: Numbers | None, count: int) -> int:
        if vector is None:
            raise ValueError(f"the vector {name} is missing")
        if vector.size != count:
            raise ValueError(f"{name} has {vector.size} numbers where {count} are needed")
        numbers = np.ascontiguousarray(vector, np.float32)
        self.kept.append(numbers)
        return numbers.ctypes.data
