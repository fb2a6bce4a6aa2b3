"""A torch decoder's weights as the native one takes them, in any types and in either order of pairs that turn."""

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from moekit.inference.packed_weights import packed_weights
from moekit.kernels.native.weights import DecoderWeights
from moekit.kernels.packed import F32, BlockType, PackedMatrix, dequantize
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder
from moekit.nn import Attention

Pack = Callable[[Tensor], PackedMatrix]


def as_type(kind: BlockType) -> Pack:
    return lambda weight: quantize(weight, kind)


EXACT = as_type(F32)


def packed(model: Decoder, pack: Pack = EXACT, interleaved: bool = False) -> DecoderWeights:
    """A model's weights, each matrix as `pack` has it; the model stays as it is."""
    model = copy.deepcopy(model)
    if interleaved:
        for layer in model.layers:
            _interleave(cast(Attention, layer.attention))
    repacked = _repacked(packed_weights(model), pack)
    return replace(cast(DecoderWeights, repacked), interleaved=interleaved)


def _repacked(part: Any, pack: Pack) -> Any:
    """The same with other matrices; routers stay."""
    if isinstance(part, PackedMatrix):
        return pack(torch.from_numpy(dequantize(part)))
    if isinstance(part, tuple):
        return tuple(_repacked(one, pack) for one in part)
    if not is_dataclass(part):
        return part
    kept = {field.name: getattr(part, field.name) for field in fields(part)}
    made = {name: value if name == "router" else _repacked(value, pack) for name, value in kept.items()}
    return type(part)(**made)


def _interleave(attention: Attention) -> None:
    """Reorder the rows of queries and keys, whole heads of them, so that pairs that turn together are neighbours."""
    of = attention.config
    turning = (of.heads + of.kv_heads) * of.head_width

    def reorder(rows: Tensor) -> None:
        rows.copy_(rows.unflatten(0, (-1, 2, of.head_width // 2)).transpose(1, 2).flatten(0, 2).clone())

    reorder(attention.query_key_value.weight[:turning])
    if attention.query_key_value.bias is not None:
        reorder(attention.query_key_value.bias[:turning])
    for norm in (attention.query_norm, attention.key_norm):
        if norm is not None:
            reorder(norm.weight)
