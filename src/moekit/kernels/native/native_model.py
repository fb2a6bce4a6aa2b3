"""From a description and weights to the compiled decoder: its arguments, part by part.

The compiled side checks all shapes and keeps the arrays alive. Here is checked what it cannot know: that weights have
the parts which the description says, and no others.
"""

from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from moekit.config import RotaryConfig
from moekit.config.frequencies import rotary_frequencies
from moekit.kernels.native.decoder_description import (
    AttentionDescription,
    FfnDescription,
    LayerDescription,
    ModelDescription,
    MoeDescription,
    RopeDescription,
)
from moekit.kernels.native.products import native_matrix
from moekit.kernels.native.streaming import NativeStreaming
from moekit.kernels.native.weights import (
    AttentionWeights,
    DecoderWeights,
    LayerWeights,
    MoEWeights,
    NetworkWeights,
)
from moekit.kernels.packed import Numbers

_Part = TypeVar("_Part")


def native_model(
    module: ModuleType,
    description: ModelDescription,
    weights: DecoderWeights,
    streaming: NativeStreaming,
) -> Any:
    """Make the compiled decoder of a model. Raises ValueError where the weights are not those of the description."""
    if len(weights.layers) != len(description.layers):
        raise ValueError(f"weights of {len(weights.layers)} layers do not make a model of {len(description.layers)}")
    return _Maker(module, description).model(weights, streaming)


class _Maker:
    """Make parts of the compiled model; each method takes a part's description and its weights."""

    def __init__(self, module: ModuleType, description: ModelDescription) -> None:
        self.module, self.description = module, description
        layers = (layer.attention for layer in description.layers)
        self.ropes = list(dict.fromkeys(part.rope for part in layers if part and part.rotary))

    def model(self, weights: DecoderWeights, streaming: NativeStreaming) -> Any:
        description = self.description
        pairs = zip(description.layers, weights.layers, strict=True)
        return self.module.Decoder(
            width=description.width,
            vocabulary=description.vocab_size,
            ropes=[self._rope(rope, weights.interleaved) for rope in self.ropes],
            layers=[self._layer(f"layer {index}: ", *pair) for index, pair in enumerate(pairs)],
            embedding=native_matrix(self.module, weights.embedding),
            head=native_matrix(self.module, weights.head),
            embedding_scale=description.embedding_scale,
            logit_scale=description.logit_scale,
            norm=self._norm(weights.norm_D, description.norm_eps),
            store=streaming.store,
            prefetch=streaming.prefetch,
            ring=streaming.ring,
        )

    def _rope(self, rope: RopeDescription, interleaved: bool) -> Any:
        frequencies = rotary_frequencies(rope.head_width, RotaryConfig(rope_base=rope.base, rope_scaling=rope.scaling))
        return self.module.Rope(
            frequencies=frequencies.values, magnitude=frequencies.magnitude, interleaved=interleaved
        )

    def _norm(self, weight: Numbers, eps: float) -> Any:
        return self.module.Norm(weight=_vector(weight), eps=eps)

    def _optional_norm(self, name: str, wanted: bool, weight: Numbers | None, eps: float) -> Any:
        part = _part(name, wanted, weight)
        return None if part is None else self._norm(part, eps)

    def _layer(self, name: str, layer: LayerDescription, weights: LayerWeights) -> Any:
        assert layer.attention is not None
        eps, after_attention, after_ffn = (
            layer.norm_eps,
            weights.attention_after_norm_D,
            weights.feed_forward_after_norm_D,
        )
        return self.module.Layer(
            attention_norm=self._norm(weights.attention_norm_D, eps),
            attention=self._attention(name, layer.attention, eps, weights.attention),
            attention_post_norm=self._optional_norm(f"{name}attention_post_norm", layer.sandwich, after_attention, eps),
            ffn_norm=self._norm(weights.feed_forward_norm_D, eps),
            ffn_post_norm=self._optional_norm(f"{name}ffn_post_norm", layer.sandwich, after_ffn, eps),
            **self._feed_forward(name, layer.ffn, weights.feed_forward),
        )

    def _attention(self, name: str, attention: AttentionDescription, eps: float, weights: AttentionWeights) -> Any:
        biased = dict.fromkeys(("query", "key", "value"), attention.qkv_bias) | {"output": attention.output_bias}
        biases = {
            f"{of}_bias": _part(f"{name}{of}_bias", wanted, getattr(weights, f"{of}_bias"))
            for of, wanted in biased.items()
        }
        normed = attention.query_key_norm != "none"
        return self.module.Attention(
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_width=attention.head_width,
            window=attention.window or 0,
            scale=attention.scale or attention.head_width**-0.5,
            soft_cap=attention.soft_cap or 0.0,
            rope=self.ropes.index(attention.rope) if attention.rotary else None,
            norm_all_heads=attention.query_key_norm == "all",
            query=native_matrix(self.module, weights.query),
            key=native_matrix(self.module, weights.key),
            value=native_matrix(self.module, weights.value),
            output=native_matrix(self.module, weights.output),
            **{of: None if bias is None else _vector(bias) for of, bias in biases.items()},
            query_norm=self._optional_norm(f"{name}query_norm", normed, weights.query_norm, eps),
            key_norm=self._optional_norm(f"{name}key_norm", normed, weights.key_norm, eps),
        )

    def _feed_forward(
        self, name: str, ffn: FfnDescription | MoeDescription, weights: NetworkWeights | MoEWeights
    ) -> dict[str, Any]:
        """Make a layer's `ffn`, and `moe` where that is one of several experts."""
        if isinstance(ffn, FfnDescription) and isinstance(weights, NetworkWeights):
            return {"ffn": self._ffn(name, ffn, weights), "moe": None}
        if not (isinstance(ffn, MoeDescription) and isinstance(weights, MoEWeights)):
            kind = "dense" if isinstance(ffn, FfnDescription) else "moe"
            raise ValueError(f"{name}the weights are not those of a layer of kind {kind}")
        shared = _part(f"{name}shared_expert", ffn.shared_expert is not None, weights.shared_expert)
        gate = _part(f"{name}shared_expert_gate", ffn.shared_expert_gate, weights.shared_expert_gate_D)
        moe = self.module.Moe(
            experts=ffn.experts,
            top_k=ffn.top_k,
            renormalize=ffn.renormalize,
            router=native_matrix(self.module, weights.router),
            shared_expert=None
            if shared is None or ffn.shared_expert is None
            else self._ffn(f"{name}shared_expert_", ffn.shared_expert, shared),
            shared_expert_gate=None if gate is None else _vector(gate),
        )
        return {"ffn": self._ffn(name, ffn.expert, weights.experts), "moe": moe}

    def _ffn(self, name: str, ffn: FfnDescription, weights: NetworkWeights) -> Any:
        gate = _part(f"{name}gate", ffn.gated, weights.gate)
        return self.module.Ffn(
            hidden=ffn.width,
            activation=getattr(self.module.ActivationFunction, ffn.activation),
            gate=None if gate is None else native_matrix(self.module, gate),
            up=native_matrix(self.module, weights.up),
            down=native_matrix(self.module, weights.down),
        )


def _part(name: str, wanted: bool, part: _Part | None) -> _Part | None:
    """Give the part. Raises ValueError where it is wanted and missing, or there and not wanted."""
    if wanted and part is None:
        raise ValueError(f"{name} is missing")
    if part is not None and not wanted:
        raise ValueError(f"{name} is among the weights, and the configuration says nothing of it")
    return part


def _vector(numbers: Numbers) -> Numbers:
    return np.ascontiguousarray(numbers, np.float32).reshape(-1)
