"""A torch decoder's weights as the native one takes them."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from moekit.config import AttentionConfig
from moekit.kernels.native.weights import (
    AttentionWeights,
    DecoderWeights,
    LayerWeights,
    MoEWeights,
    NetworkWeights,
)
from moekit.kernels.packed import F32, BlockType, PackedMatrix, quantize
from moekit.models import Decoder
from moekit.models.decoder import DecoderLayer
from moekit.moe import MoELayer
from moekit.nn import FeedForward

Pack = Callable[[Tensor], PackedMatrix]


def as_type(kind: BlockType) -> Pack:
    return lambda weight: quantize(weight, kind)


EXACT = as_type(F32)


def packed(model: Decoder, pack: Pack = EXACT, interleaved: bool = False) -> DecoderWeights:
    """A model's weights as the native decoder takes them."""
    layers = tuple(_layer(layer, pack, interleaved) for layer in cast(list[DecoderLayer], list(model.layers)))
    return DecoderWeights(
        embedding=pack(model.embedding.weight),
        layers=layers,
        norm_D=cast(Tensor, model.norm.weight),
        head=pack(model.head.weight),
        interleaved=interleaved,
    )


def _layer(layer: DecoderLayer, pack: Pack, interleaved: bool) -> LayerWeights:
    sandwich = layer.block == "sandwich"
    return LayerWeights(
        attention_norm_D=layer.attention_norm.weight,
        attention=_attention(layer.attention, pack, interleaved),
        feed_forward_norm_D=layer.feed_forward_norm.weight,
        feed_forward=_mixture(layer.feed_forward, pack)
        if isinstance(layer.feed_forward, MoELayer)
        else _network(layer.feed_forward, pack),
        attention_after_norm_D=layer.attention_after_norm.weight if sandwich else None,
        feed_forward_after_norm_D=layer.feed_forward_after_norm.weight if sandwich else None,
    )


def _attention(attention: Any, pack: Pack, interleaved: bool) -> AttentionWeights:
    of: AttentionConfig = attention.config
    rows = [of.heads * of.head_width, of.kv_heads * of.head_width, of.kv_heads * of.head_width]

    def pairs(numbers: Tensor) -> Tensor:
        """Rows of whole heads in the order in which pairs that turn together are neighbours."""
        if not interleaved:
            return numbers
        return numbers.unflatten(0, (-1, 2, of.head_width // 2)).transpose(1, 2).flatten(0, 2)

    query, key, value = attention.query_key_value.weight.split(rows)
    bias = attention.query_key_value.bias
    query_bias, key_bias, value_bias = (None, None, None) if bias is None else bias.split(rows)
    norms = (attention.query_norm, attention.key_norm)
    return AttentionWeights(
        query=pack(pairs(query)),
        key=pack(pairs(key)),
        value=pack(value),
        output=pack(attention.output.weight),
        query_bias=None if query_bias is None else pairs(query_bias),
        key_bias=None if key_bias is None else pairs(key_bias),
        value_bias=value_bias,
        output_bias=attention.output.bias,
        query_norm=None if norms[0] is None else pairs(norms[0].weight),
        key_norm=None if norms[1] is None else pairs(norms[1].weight),
    )


def _mixture(moe: MoELayer, pack: Pack) -> MoEWeights:
    gate_up_EGD = moe.experts.gate_up_EGD
    gate_EFD, up_EFD = gate_up_EGD.chunk(2, 1) if moe.config.gated else (None, gate_up_EGD)
    return MoEWeights(
        router=quantize(moe.router.weight, F32),
        experts=NetworkWeights(
            gate=None if gate_EFD is None else pack(gate_EFD.flatten(0, 1)),
            up=pack(up_EFD.flatten(0, 1)),
            down=pack(moe.experts.down_EDF.flatten(0, 1)),
        ),
        branch=None if moe.branch is None else _network(moe.branch, pack),
        branch_gate_D=None if moe.branch_gate is None else moe.branch_gate.weight[0],
    )


def _network(network: FeedForward, pack: Pack) -> NetworkWeights:
    gated = network.activation.gated
    gate, up = network.gate_up.weight.chunk(2) if gated else (None, network.gate_up.weight)
    return NetworkWeights(gate=None if gate is None else pack(gate), up=pack(up), down=pack(network.down.weight))
