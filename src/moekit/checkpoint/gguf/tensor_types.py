"""The number types that a GGUF file may hold, and those of them that moekit computes with as they lie there.

Types are known by their code. The table is ggml's (ggml.h, ggml-common.h), written out, because the `gguf` package
takes a fifth of a second to import; a test holds the two together.
"""

from dataclasses import dataclass

from moekit.kernels.packed import BLOCK_TYPES, BlockType


@dataclass(frozen=True)
class StoredType:
    """A type that packs `numbers` numbers into a block of `size` bytes."""

    name: str
    numbers: int
    size: int


PACKED_TYPES: dict[int, BlockType] = {block_type.code: block_type for block_type in BLOCK_TYPES}
"""The types that moekit computes with, by code."""

_OTHER_TYPES = {
    3: StoredType("Q4_1", 32, 20),
    6: StoredType("Q5_0", 32, 22),
    7: StoredType("Q5_1", 32, 24),
    9: StoredType("Q8_1", 32, 40),
    10: StoredType("Q2_K", 256, 84),
    11: StoredType("Q3_K", 256, 110),
    13: StoredType("Q5_K", 256, 176),
    15: StoredType("Q8_K", 256, 292),
    16: StoredType("IQ2_XXS", 256, 66),
    17: StoredType("IQ2_XS", 256, 74),
    18: StoredType("IQ3_XXS", 256, 98),
    19: StoredType("IQ1_S", 256, 50),
    20: StoredType("IQ4_NL", 32, 18),
    21: StoredType("IQ3_S", 256, 110),
    22: StoredType("IQ2_S", 256, 82),
    23: StoredType("IQ4_XS", 256, 136),
    24: StoredType("I8", 1, 1),
    25: StoredType("I16", 1, 2),
    26: StoredType("I32", 1, 4),
    27: StoredType("I64", 1, 8),
    28: StoredType("F64", 1, 8),
    29: StoredType("IQ1_M", 256, 56),
    34: StoredType("TQ1_0", 256, 54),
    35: StoredType("TQ2_0", 256, 66),
    39: StoredType("MXFP4", 32, 17),
    40: StoredType("NVFP4", 64, 36),
    41: StoredType("Q1_0", 128, 18),
}

STORED_TYPES = {
    code: StoredType(block_type.name.upper(), block_type.numbers, block_type.size)
    for code, block_type in PACKED_TYPES.items()
} | _OTHER_TYPES
"""All types that a GGUF file may hold, by code."""
