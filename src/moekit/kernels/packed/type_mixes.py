"""What a file of each type is made of: a type for most matrices, and more bits where llama.cpp's mixes have them.

The rules are those of llama.cpp (`llama_tensor_get_type_impl` in src/llama-quant.cpp). This module imports neither
torch nor NumPy, so that the command line can name the types at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moekit.kernels.packed.block_types import (
    BF16,
    F16,
    F32,
    Q3_K,
    Q4_0,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_0,
    WRITTEN_TYPES,
    BlockType,
)

Rule = Callable[[int, int], BlockType]
"""From a layer's index and the number of layers to a type."""


@dataclass(frozen=True)
class Shape:
    """What the rules ask of a model.

    Attributes:
        layers: their number.
        experts: of its mixtures; 0 in a dense model.
        grouped: whether several heads share keys and values.
    """

    layers: int
    experts: int
    grouped: bool


@dataclass(frozen=True)
class TypeMix:
    """The types of a file.

    Attributes:
        name: by which users know it.
        base: the type of matrices that no rule is about.
        file_type: the number by which other programs name the whole file (llama.h's llama_ftype).
        rules: for matrices by the names that they have in a layer.
        of_eight_experts: what llama.cpp chooses instead in a mixture of eight experts, where attention is small.
    """

    name: str
    base: BlockType
    file_type: int
    rules: Mapping[str, Rule] = field(default_factory=dict)
    of_eight_experts: Mapping[str, Rule] = field(default_factory=dict)

    def type_of(self, name: str, shape: Shape) -> BlockType:
        """Choose the type of a matrix by its name in the file."""
        _, layer, *rest = name.split(".") if name.startswith("blk.") else ("", "0", name)
        role = rest[0].removesuffix("_exps").removesuffix("_shexp")
        rules = {**self.rules, **(self.of_eight_experts if shape.experts == _EIGHT else {})}
        found = rules[role](int(layer), shape.layers) if role in rules else self.base
        if (
            role == "attn_v"
            and self.of_eight_experts
            and shape.layers == _LARGE
            and shape.grouped
            and found in (Q3_K, Q4_K)
        ):
            return Q5_K  # of 70 billion parameters, whose values are shared by eight heads and small
        return found


def _always(kind: BlockType) -> Rule:
    return lambda layer, layers: kind


def _mostly(kind: BlockType, base: BlockType) -> Rule:
    """Give the layers at both ends, and every third between, more bits."""

    def choose(layer: int, layers: int) -> BlockType:
        is_end = layer < layers // 8 or layer >= 7 * layers // 8
        return kind if is_end or (layer - layers // 8) % 3 == 2 else base

    return choose


def _first(count: int, kind: BlockType, base: BlockType) -> Rule:
    return lambda layer, layers: kind if layer < count else base


def _first_part(part: int, kind: BlockType, base: BlockType) -> Rule:
    return lambda layer, layers: kind if layer < layers // part else base


_EIGHT, _LARGE = 8, 80
_ATTENTION = {"attn_v": _always(Q8_0), "attn_k": _always(Q8_0)}
_FINE_ATTENTION = {**_ATTENTION, "attn_output": _always(Q5_K)}
_FILE_TYPES = {F32: 0, F16: 1, Q4_0: 2, Q8_0: 7, Q3_K: 11, Q4_K: 14, Q5_K: 16, Q6_K: 18, BF16: 32}

PURE: Mapping[BlockType, TypeMix] = {kind: TypeMix(kind.name, kind, _FILE_TYPES[kind]) for kind in WRITTEN_TYPES}
"""One type for all matrices but the head."""

_MIXES = (
    TypeMix("q3_k_s", Q3_K, 11, {}, _FINE_ATTENTION),
    TypeMix(
        "q3_k_m",
        Q3_K,
        12,
        {
            "attn_v": _first(2, Q5_K, Q4_K),
            "ffn_down": _first_part(16, Q5_K, Q4_K),
            "attn_output": _always(Q4_K),
        },
        _FINE_ATTENTION,
    ),
    TypeMix(
        "q3_k_l",
        Q3_K,
        13,
        {"attn_v": _always(Q5_K), "ffn_down": _always(Q5_K), "attn_output": _always(Q5_K)},
        {**_ATTENTION, "attn_output": _always(Q3_K)},
    ),
    TypeMix(
        "q4_k_s",
        Q4_K,
        14,
        {"attn_v": _first(4, Q5_K, Q4_K), "ffn_down": _first_part(8, Q5_K, Q4_K)},
        _FINE_ATTENTION,
    ),
    TypeMix(
        "q4_k_m",
        Q4_K,
        15,
        {"attn_v": _mostly(Q6_K, Q4_K), "ffn_down": _mostly(Q6_K, Q4_K)},
        _FINE_ATTENTION,
    ),
    TypeMix("q5_k_s", Q5_K, 16, {}, _ATTENTION),
    TypeMix(
        "q5_k_m",
        Q5_K,
        17,
        {"attn_v": _mostly(Q6_K, Q5_K), "ffn_down": _mostly(Q6_K, Q5_K)},
        _ATTENTION,
    ),
)

TYPE_MIXES: Mapping[str, TypeMix] = {mix.name: mix for mix in (*PURE.values(), *_MIXES)}
"""All of them by the names that users know; large and small letters are the same."""
