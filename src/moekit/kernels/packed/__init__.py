"""Matrices in the packed types of GGUF files: what they are, and the portable way to pack and unpack them."""

from moekit.kernels.packed.dequantize import dequantize
from moekit.kernels.packed.quantize import quantize
from moekit.kernels.packed.types import BF16, BLOCK_TYPES, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0, BlockType, PackedMatrix

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
    "PackedMatrix",
    "dequantize",
    "quantize",
]
