"""Matrices in the packed types of GGUF files: what they are, and the portable way to unpack them.

Names are imported when they are asked for: `block_types` needs no NumPy. The way to pack a matrix, `quantize`, needs
torch and is imported from its own module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.kernels.packed.block_types import (
        BF16,
        BLOCK_TYPES,
        BLOCK_TYPES_BY_NAME,
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
    from moekit.kernels.packed.dequantize_blocks import dequantize
    from moekit.kernels.packed.packed_matrix import Bytes, Numbers, PackedMatrix

__all__ = [
    "BF16",
    "BLOCK_TYPES",
    "BLOCK_TYPES_BY_NAME",
    "F16",
    "F32",
    "Q3_K",
    "Q4_0",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "WRITTEN_TYPES",
    "BlockType",
    "Bytes",
    "Numbers",
    "PackedMatrix",
    "dequantize",
]

_OTHER_HOMES = {
    "Bytes": "packed_matrix",
    "Numbers": "packed_matrix",
    "PackedMatrix": "packed_matrix",
    "dequantize": "dequantize_blocks",
}


def __getattr__(name: str) -> Any:
    """Import `name` from the module that defines it, and keep it here."""
    if name not in __all__:
        raise AttributeError(f"module 'moekit.kernels.packed' has no attribute {name!r}")
    value = getattr(import_module(f"moekit.kernels.packed.{_OTHER_HOMES.get(name, 'block_types')}"), name)
    globals()[name] = value
    return value
