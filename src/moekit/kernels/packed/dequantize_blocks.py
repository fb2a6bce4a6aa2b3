"""From packed blocks to numbers, in NumPy: the portable way, bit for bit that of the `gguf` package.

R rows, N blocks of all rows together, S sub-blocks of a block.
"""

from collections.abc import Callable

import numpy as np

from moekit.kernels.packed.block_types import (
    BF16,
    F16,
    F32,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    BlockType,
)
from moekit.kernels.packed.packed_matrix import Bytes, Numbers, PackedMatrix


def dequantize(matrix: PackedMatrix) -> Numbers:
    """Unpack a matrix to numbers of shape (rows, columns) in fp32: a copy."""
    blocks_NB = matrix.data_RB.reshape(-1, matrix.type.size)
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale makes numbers that are not, and no noise
        numbers: Numbers = _NUMBERS[matrix.type](blocks_NB)
    return numbers.reshape(matrix.rows, matrix.columns)


def sub_scales(packed_NB: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack the eight scales and the eight minima of a Q4_K block, 6 bits each in 12 bytes.

    Bytes 0 to 3 and 4 to 7 hold the first four scales and minima in their low bits, and the two highest bits of the
    last four in their high bits; bytes 8 to 11 hold the low halves of those, a scale under a minimum.
    """
    first, second, low = np.split(packed_NB, 3, axis=-1)
    scale_NS = np.concatenate([first & 0x3F, (low & 0x0F) | ((first >> 2) & 0x30)], -1)
    minimum_NS = np.concatenate([second & 0x3F, (low >> 4) | ((second >> 2) & 0x30)], -1)
    return scale_NS, minimum_NS


def _half(bytes_NB: Bytes) -> Numbers:
    """Read two bytes as an fp16 number, in fp32."""
    return np.ascontiguousarray(bytes_NB).view(np.float16).astype(np.float32)


def _signed(bytes_NB: Bytes) -> Numbers:
    return bytes_NB.view(np.int8).astype(np.float32)


def _f32(blocks_NB: Bytes) -> Numbers:
    return np.ascontiguousarray(blocks_NB).view(np.float32).copy()


def _bf16(blocks_NB: Bytes) -> Numbers:
    words_N1 = np.ascontiguousarray(blocks_NB).view(np.uint16).astype(np.uint32)
    return (words_N1 << 16).view(np.float32)


def _q8_0(blocks_NB: Bytes) -> Numbers:
    return _signed(blocks_NB[:, 2:]) * _half(blocks_NB[:, :2])


def _q4_0(blocks_NB: Bytes) -> Numbers:
    nibbles = blocks_NB[:, 2:]
    levels = np.concatenate([nibbles & 0x0F, nibbles >> 4], -1).astype(np.float32)
    return _half(blocks_NB[:, :2]) * (levels - 8)


def _q4_k(blocks_NB: Bytes) -> Numbers:
    scale_NS, minimum_NS = sub_scales(blocks_NB[:, 4:16])
    scales = _half(blocks_NB[:, :2]) * scale_NS.astype(np.float32)
    minima = _half(blocks_NB[:, 2:4]) * minimum_NS.astype(np.float32)
    nibbles = blocks_NB[:, 16:].reshape(-1, 4, 1, 32)
    levels = np.concatenate([nibbles & 0x0F, nibbles >> 4], 2).reshape(-1, 8, 32).astype(np.float32)
    return scales[..., None] * levels - minima[..., None]


def _q6_k(blocks_NB: Bytes) -> Numbers:
    scale_NS = _half(blocks_NB[:, 208:]) * _signed(blocks_NB[:, 192:208])
    # Each half of a block: 64 bytes of low nibbles, whose 32 bytes of high bits hold four pairs of bits each.
    nibbles = blocks_NB[:, :128].reshape(-1, 2, 1, 64)
    low: Bytes = np.concatenate([nibbles & 0x0F, nibbles >> 4], 2).reshape(-1, 2, 4, 32)
    pairs = blocks_NB[:, 128:192].reshape(-1, 2, 1, 32)
    high: Bytes = np.concatenate([(pairs >> shift) & 0x03 for shift in (0, 2, 4, 6)], 2)
    levels = (low | (high << 4)).astype(np.float32) - 32
    return scale_NS[..., None] * levels.reshape(-1, 16, 16)


_NUMBERS: dict[BlockType, Callable[[Bytes], Numbers]] = {
    F32: _f32, F16: _half, BF16: _bf16, Q8_0: _q8_0, Q4_0: _q4_0, Q4_K: _q4_k, Q6_K: _q6_k,
}  # fmt: skip
