"""Matrices in the packed types of GGUF files: what they are, and the portable way to unpack them.

The way to pack them, `quantize`, needs torch and is imported from its own module.
"""

from moekit.kernels.packed.block_types import (
    BF16,
    BLOCK_TYPES,
    F16,
    F32,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    BlockType,
    Bytes,
    Numbers,
    PackedMatrix,
)
from moekit.kernels.packed.dequantize import dequantize

__all__ = [
    "BF16",
    "BLOCK_TYPES",
    "F16",
    "F32",
    "Q4_0",
    "Q4_K",
    "Q6_K",
    "Q8_0",
    "BlockType",
    "Bytes",
    "Numbers",
    "PackedMatrix",
    "dequantize",
]
