"""Products of quantised weights are sums of whole numbers, rounded in one order.

So they have the same bits in every instruction set, for any number of rows of activations, and nothing but the matrix
is read.
"""

import ctypes
import faulthandler
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.test_native_products import (
    QUANTIZED,
    SCALES,
    Bytes,
    check_products,
    multiply,
    packed,
    random_bytes,
    random_matrix,
    same_bits,
)
from torch import Tensor

from moekit.kernels.native import available, instruction_set
from moekit.kernels.native.module import native
from moekit.kernels.packed import BLOCK_TYPES, Q4_0, BlockType, PackedMatrix

pytestmark = pytest.mark.skipif(not available(), reason="the native kernels are not built")

SETS = native().instruction_sets() if available() else []


@pytest.fixture(autouse=True)
def the_best_afterwards() -> Iterator[None]:
    best = instruction_set()
    yield
    native().select_instruction_set(best)


def by_each_set(matrix: PackedMatrix, x_BD: Tensor) -> dict[str, Tensor]:
    results = {}
    for name in SETS:
        native().select_instruction_set(name)
        results[name] = multiply(matrix, x_BD)
    return results


def weights(kind: BlockType, rows: int, columns: int, fill: int | None, scale: int | None, offset: int) -> PackedMatrix:
    """Random weights of a size of about 1, or bits that are all the same; one block may have another scale."""
    matrix = random_matrix(kind, rows, columns, offset)
    blocks: Bytes = matrix.data_RB.reshape(-1, kind.size).copy()
    if fill is not None:
        kept = [blocks[:, at : at + 2].copy() for at in SCALES[kind]]
        blocks[:] = fill
        for at, of_blocks in zip(SCALES[kind], kept, strict=True):
            blocks[:, at : at + 2] = of_blocks
    if scale is not None:
        for at in SCALES[kind]:
            blocks[len(blocks) // 2, at : at + 2] = [scale & 255, scale >> 8]
    return packed(blocks.reshape(rows, -1), kind, offset)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 40),
    batch=st.integers(1, 9),
    fill=st.sampled_from([None, None, 0x00, 0x80, 0x7F, 0xFF]),
    scale=st.sampled_from([None, None, 0x0000, 0x0001, 0x7BFF, 0x7C00, 0xFE01]),
    size=st.sampled_from([1e-30, 1.0, 1e20]),
    equal=st.booleans(),
    offset=st.integers(0, 63),
)
def test_the_same_bits_everywhere(
    kind: BlockType,
    rows: int,
    blocks: int,
    batch: int,
    fill: int | None,
    scale: int | None,
    size: float,
    equal: bool,
    offset: int,
) -> None:
    matrix = weights(kind, rows, -(-32 * blocks // kind.numbers) * kind.numbers, fill, scale, offset)
    x_BD = torch.randn(batch, matrix.columns, generator=torch.Generator().manual_seed(rows + 64 * blocks))
    # numbers of one size become 127 or -127, by blocks of one sign: their sums are the greatest there are
    x_BD = size * (x_BD[:, :1].sign().expand_as(x_BD) if equal else x_BD).contiguous()
    results = by_each_set(matrix, x_BD)
    for name in SETS:
        assert same_bits(results[name], results[SETS[0]]), name
        for b in range(batch):
            assert same_bits(multiply(matrix, x_BD[b : b + 1]), results[name][b : b + 1])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
def test_the_greatest_sums(kind: BlockType, fill: int, name: str) -> None:
    """All weights at an end of their range, all activations 127 or -127: no sum may saturate."""
    native().select_instruction_set(name)
    matrix = weights(kind, 5, 512, fill, None, 0)
    x_BD = torch.ones(4, 512)
    x_BD[1], x_BD[2, ::2], x_BD[3, 1::2] = -1, -1, -1
    check_products(matrix, x_BD, multiply(matrix, x_BD))


def survives(work: Callable[[], None]) -> bool:
    """In a process of its own, since what reads a forbidden page dies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child makes its own
        child = os.fork()
    if child == 0:
        faulthandler.disable()  # its death is no news
        signal.alarm(60)
        torch.set_num_threads(1)  # the parent's threads are not there to wait for
        try:
            work()
        finally:
            os._exit(0 if sys.exception() is None else 1)
    return os.waitpid(child, 0)[1] == 0


class Fenced:
    """Memory for a matrix between two pages that nobody may read."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        inside = -(-size // page) * page
        self.memory = mmap.mmap(-1, inside + 2 * page)
        self.bytes = np.frombuffer(self.memory, np.uint8)[page : page + inside]
        start = self.bytes.ctypes.data
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for place in (start - page, start + inside):
            assert protect(ctypes.c_void_p(place), ctypes.c_size_t(page), ctypes.c_int(0)) == 0

    def matrix(self, kind: BlockType, rows: int, columns: int, at_end: bool) -> PackedMatrix:
        data_RB = random_bytes(kind, rows, columns)
        size = data_RB.size
        place_RB = (self.bytes[-size:] if at_end else self.bytes[:size]).reshape(data_RB.shape)
        place_RB[:] = data_RB
        return PackedMatrix(place_RB, kind, columns)


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
@pytest.mark.parametrize("name", SETS)
def test_nothing_around_the_matrix_is_read(name: str) -> None:
    fenced = Fenced(40 * 4 * 1024)
    native().select_instruction_set(name)

    def work() -> None:
        for kind in BLOCK_TYPES:
            for rows, blocks in [(1, 1), (3, 8), (4, 9), (7, 16), (16, 7), (33, 3), (40, 24)]:
                columns = -(-32 * blocks // kind.numbers) * kind.numbers
                for at_end in (False, True):
                    matrix = fenced.matrix(kind, rows, columns, at_end)
                    for batch in (1, 3, 8):
                        multiply(matrix, torch.ones(batch, columns))

    assert survives(work)


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
def test_the_fence_holds() -> None:
    fenced = Fenced(4096)
    behind = ctypes.c_char.from_address(fenced.bytes.ctypes.data + fenced.bytes.size)

    def read() -> None:
        bytes(behind.value)

    assert not survives(read)


def test_zeros_of_activations_give_zeros_of_one_sign() -> None:
    matrix = random_matrix(Q4_0, 9, 320)
    for y_BR in by_each_set(matrix, torch.zeros(3, 320)).values():
        assert same_bits(y_BR, torch.zeros(3, 9))
