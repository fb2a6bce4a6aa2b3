"""From packed blocks to numbers, in torch: the portable way, bit for bit that of the `gguf` package.

R rows, N blocks of all rows together, S sub-blocks of a block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moekit.kernels.packed.types import BF16, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0, BlockType, PackedMatrix


def dequantize(matrix: PackedMatrix) -> Tensor:
    """All of a matrix as numbers, (rows, columns), fp32."""
    kind, data_RB = matrix.type, matrix.data_RB
    if kind in _PLAIN:
        return data_RB.contiguous().view(_PLAIN[kind]).float()
    numbers_NC = _BLOCKS[kind](data_RB.reshape(-1, kind.size))
    return numbers_NC.view(matrix.rows, matrix.columns)


def sub_scales(packed_NB: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and the eight minima of Q4_K, 6 bits each in 12 bytes, as uint8.

    Bytes 0 to 3 and 4 to 7 hold the first four scales and minima in their low bits, and the two highest bits of the
    last four in their high bits; bytes 8 to 11 hold the low halves of those, a scale under a minimum.
    """
    first, second, low = torch.split(packed_NB, 4, -1)
    scale_NS = torch.cat([first & 0x3F, (low & 0x0F) | ((first >> 2) & 0x30)], -1)
    minimum_NS = torch.cat([second & 0x3F, (low >> 4) | ((second >> 2) & 0x30)], -1)
    return scale_NS, minimum_NS


def _half(bytes_NB: Tensor) -> Tensor:
    """Two bytes as the fp16 that they are, in fp32."""
    return bytes_NB.contiguous().view(torch.float16).float()


def _q8_0(blocks_NB: Tensor) -> Tensor:
    return blocks_NB[:, 2:].view(torch.int8).float() * _half(blocks_NB[:, :2])


def _q4_0(blocks_NB: Tensor) -> Tensor:
    nibbles = blocks_NB[:, 2:]
    return _half(blocks_NB[:, :2]) * (torch.cat([nibbles & 0x0F, nibbles >> 4], -1).float() - 8)


def _q4_k(blocks_NB: Tensor) -> Tensor:
    scale_NS, minimum_NS = sub_scales(blocks_NB[:, 4:16])
    scale_NS = _half(blocks_NB[:, :2]) * scale_NS.float()
    minimum_NS = _half(blocks_NB[:, 2:4]) * minimum_NS.float()
    nibbles = blocks_NB[:, 16:].reshape(-1, 4, 1, 32)
    levels = torch.cat([nibbles & 0x0F, nibbles >> 4], 2).view(-1, 8, 32).float()
    return (scale_NS.unsqueeze(-1) * levels - minimum_NS.unsqueeze(-1)).flatten(1)


def _q6_k(blocks_NB: Tensor) -> Tensor:
    scale_NS = _half(blocks_NB[:, 208:]) * blocks_NB[:, 192:208].view(torch.int8).float()
    # Each half of a block: 64 bytes of low nibbles, whose 32 bytes of high bits hold four pairs of bits each.
    nibbles = blocks_NB[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat([nibbles & 0x0F, nibbles >> 4], 2).view(-1, 2, 4, 32)
    pairs = blocks_NB[:, 128:192].reshape(-1, 2, 1, 32)
    high = torch.cat([(pairs >> shift) & 0x03 for shift in (0, 2, 4, 6)], 2)
    levels = (low | (high << 4)).float() - 32
    return (scale_NS.unsqueeze(-1) * levels.view(-1, 16, 16)).flatten(1)


_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_BLOCKS: dict[BlockType, Callable[[Tensor], Tensor]] = {Q8_0: _q8_0, Q4_0: _q4_0, Q4_K: _q4_k, Q6_K: _q6_k}
