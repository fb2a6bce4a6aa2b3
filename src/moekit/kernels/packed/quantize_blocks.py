"""From numbers to packed blocks, by torch on all cores.

Q8_0 and Q4_0 are, bit for bit, what the `gguf` package makes of them; Q3_K to Q6_K come from a search for the scales
with the least squared error (`k_quants.py`).

R rows, C numbers of a block or of a row, N blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moekit.kernels.packed.block_types import BF16, F16, F32, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, BlockType
from moekit.kernels.packed.k_quants import q3_k, q4_k, q5_k, q6_k
from moekit.kernels.packed.packed_matrix import PackedMatrix
from moekit.kernels.workers import workers

# Numbers at once, on one core: the passes of the search over them stay in its cache.
_CHUNK = 1 << 17


def quantize(numbers_RC: Tensor, kind: BlockType) -> PackedMatrix:
    """Convert a matrix to fp32 and pack it as `kind`.

    Raises:
        ValueError: where its columns are not whole blocks.
        OverflowError: where a number is too large for the type, whose largest is that of fp16 or of a scale in fp16.
    """
    rows, columns = numbers_RC.shape
    row_bytes = kind.row_bytes(columns)
    if kind in _PLAIN:
        plain_RC = numbers_RC.float().to(_PLAIN[kind]).contiguous()
        if (numbers_RC.isfinite() & ~plain_RC.isfinite()).any():
            raise OverflowError(_too_large(kind))
        return PackedMatrix(plain_RC.view(torch.uint8).view(rows, row_bytes).numpy(), kind, columns)
    data_RB = torch.empty(rows, row_bytes, dtype=torch.uint8)
    numbers_NC, data_NB = numbers_RC.reshape(-1, kind.numbers), data_RB.view(-1, kind.size)
    step = _CHUNK // kind.numbers

    def pack(begin: int) -> None:
        blocks_NC = numbers_NC[begin : begin + step].float().contiguous()
        packed_NB = _BLOCKS[kind](blocks_NC)
        if not packed_NB[:, _SCALES[kind]].contiguous().view(torch.float16).isfinite().all():
            raise OverflowError(_too_large(kind))
        data_NB[begin : begin + step] = packed_NB

    workers().run(pack, range(0, len(numbers_NC), step))
    return PackedMatrix(data_RB.numpy(), kind, columns)


def _too_large(kind: BlockType) -> str:
    return f"a number is too large for {kind.name}"


def _inverse(scale_N: Tensor) -> Tensor:
    return torch.where(scale_N == 0, 0.0, 1 / scale_N)


def _half(scale_N1: Tensor) -> Tensor:
    """Convert to fp16 and give the two bytes of each number."""
    return scale_N1.half().view(torch.uint8)


def _q8_0(blocks_NC: Tensor) -> Tensor:
    scale_N1 = blocks_NC.abs().amax(-1, keepdim=True) / 127
    scaled = blocks_NC * _inverse(scale_N1)
    # Halves away from zero, as C's roundf does; torch.round takes them to the even neighbour.
    size = scaled.abs()
    whole = size.floor()
    levels = scaled.sign() * (whole + (2 * (size - whole)).floor())
    return torch.cat([_half(scale_N1), levels.to(torch.int8).view(torch.uint8)], -1)


def _q4_0(blocks_NC: Tensor) -> Tensor:
    largest = blocks_NC.gather(-1, blocks_NC.abs().argmax(-1, keepdim=True))
    scale_N1 = largest / -8
    levels = (blocks_NC * _inverse(scale_N1) + 8.5).clamp(0, 15).to(torch.uint8)
    low, high = torch.split(levels, 16, -1)
    return torch.cat([_half(scale_N1), low | (high << 4)], -1)


_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_BLOCKS: dict[BlockType, Callable[[Tensor], Tensor]] = {
    Q8_0: _q8_0,
    Q4_0: _q4_0,
    Q3_K: q3_k,
    Q4_K: q4_k,
    Q5_K: q5_k,
    Q6_K: q6_k,
}
# Where a block holds its scales in fp16.
_SCALES = {
    Q8_0: slice(0, 2),
    Q4_0: slice(0, 2),
    Q3_K: slice(108, 110),
    Q4_K: slice(0, 4),
    Q5_K: slice(0, 4),
    Q6_K: slice(208, 210),
}
