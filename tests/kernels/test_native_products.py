"""Packed matrices in native code: the bits of the `gguf` package, and products within what rounding to 8 bits allows.

Everything runs once for each instruction set that this machine has.
"""

import gc
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants
from tests.kernels.instruction_sets import using_instruction_set
from torch import Tensor

from moekit.kernels.native import available, products, read_bandwidth
from moekit.kernels.native.module import native
from moekit.kernels.packed import BF16, BLOCK_TYPES, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0, BlockType, PackedMatrix

pytestmark = pytest.mark.skipif(not available(), reason="the native kernels are not built")

Bytes = npt.NDArray[np.uint8]

QUANTIZED = (Q4_0, Q8_0, Q4_K, Q6_K)
# where the fp16 scales lie in a block
SCALES = {Q4_0: (0,), Q8_0: (0,), Q4_K: (0, 2), Q6_K: (208,)}


@pytest.fixture(params=native().instruction_sets() if available() else [])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    with using_instruction_set(request.param) as name:
        yield name


def multiply(matrix: PackedMatrix, x_BD: Tensor) -> Tensor:
    return torch.from_numpy(products.multiply(matrix, x_BD.numpy()))


def multiply_many(matrix: PackedMatrix, x_TD: Tensor) -> Tensor:
    return torch.from_numpy(products.multiply_many(matrix, x_TD.numpy()))


def dequantize(matrix: PackedMatrix, *rows: int) -> Tensor:
    return torch.from_numpy(products.dequantize(matrix, *rows))


def dequantize_bf16(matrix: PackedMatrix) -> Tensor:
    """What products of many rows are made of."""
    out_RD = np.empty((matrix.rows, matrix.columns), np.uint16)
    native().dequantize_bf16(products.native_matrix(native(), matrix), 0, matrix.rows, out_RD)
    return torch.from_numpy(out_RD).view(torch.bfloat16)


def packed(data_RB: Bytes, kind: BlockType, offset: int = 0) -> PackedMatrix:
    """At an address `offset` bytes from a round one, as a file's tensors may lie, and at the end of its memory."""
    memory = np.empty(offset + data_RB.size, np.uint8)
    place_RB = memory[offset:].reshape(data_RB.shape)
    place_RB[:] = data_RB
    return PackedMatrix(place_RB, kind, data_RB.shape[1] // kind.size * kind.numbers)


def numbers(matrix: PackedMatrix) -> npt.NDArray[np.float32]:
    """By the `gguf` package."""
    with np.errstate(all="ignore"):
        found: npt.NDArray[np.float32] = quants.dequantize(matrix.data_RB, GGMLQuantizationType(matrix.type.code))
    return found


def random_bytes(kind: BlockType, rows: int, columns: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (rows, kind.row_bytes(columns)), dtype=np.uint8)


def random_matrix(kind: BlockType, rows: int, columns: int, offset: int = 0) -> PackedMatrix:
    """Random bits with scales such that its numbers have a size of about 1, of both signs."""
    rng = np.random.default_rng(rows * columns)
    if kind not in SCALES:
        drawn = torch.from_numpy(rng.standard_normal((rows, columns), dtype=np.float32))
        dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[kind]
        return packed(drawn.to(dtype).view(torch.uint8).numpy(), kind, offset)
    blocks = random_bytes(kind, rows, columns).reshape(-1, kind.size)
    for place in SCALES[kind]:
        scales = rng.uniform(0.5, 1.0, (len(blocks), 1)) * rng.choice([-1, 1], (len(blocks), 1))
        per_unit = {Q4_0: 8, Q8_0: 127, Q4_K: 15 * 63, Q6_K: 32 * 127}[kind]
        blocks[:, place : place + 2] = (scales / per_unit).astype(np.float16).view(np.uint8)
    return packed(blocks.reshape(rows, -1), kind, offset)


def same_bits(got: Tensor, expected: Tensor) -> bool:
    """NaN equals NaN, whatever it carries; 0 does not equal -0."""
    whole = {4: torch.int32, 2: torch.int16}[got.element_size()]
    equal = (got.view(whole) == expected.view(whole)) | (got.isnan() & expected.isnan())
    return bool(equal.all())


def width(kind: BlockType, least: int) -> int:
    return -(-least // kind.numbers) * kind.numbers


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [1, 300, 1024])
def test_dequantized_bits(kind: BlockType, columns: int, instructions: str) -> None:
    """Any bytes: scales that are 0, denormal, infinite or NaN are among 3,000 random ones, and put in besides."""
    data_RB = random_bytes(kind, 23, width(kind, columns))
    for row, scale in enumerate([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01]):
        for place in SCALES.get(kind, ()):
            data_RB[row].reshape(-1, kind.size)[:, place : place + 2] = np.array([scale], np.uint16).view(np.uint8)
    matrix = packed(data_RB, kind, offset=3)
    expected_RD = torch.from_numpy(numbers(matrix).copy())
    assert same_bits(dequantize(matrix), expected_RD)
    assert same_bits(dequantize(matrix, 4, 9), expected_RD[4:9])
    assert same_bits(dequantize_bf16(matrix), expected_RD.to(torch.bfloat16))


def moved(matrix: PackedMatrix, x_BD: Tensor) -> Tensor:
    """How far an activation moves at most: half a step, amax / 254, in a block of 32; in bf16 2^-8 of itself."""
    if matrix.type not in QUANTIZED:
        return x_BD.double().abs() * (2.0**-8 if matrix.type == BF16 else 0.0)
    columns = matrix.columns
    blocks = F.pad(x_BD.double().abs(), (0, -columns % 32)).unflatten(1, (-1, 32))
    return (blocks.amax(2, keepdim=True) / 254).expand_as(blocks).flatten(1)[:, :columns]


def check_products(matrix: PackedMatrix, x_BD: Tensor, y_BR: Tensor) -> None:
    """Compare products with those in fp64, whose error has two bounds.

    No result may be farther off than if all activations moved in the worst way, and all together not much farther than
    if they moved at random, evenly within their steps (variance: a third of the square). Rounding in fp32 adds (columns
    + 8) * 2^-24 of the sum of magnitudes, in which a weight counts with the offset that is taken off at the end: these
    weights are below 2 with it.
    """
    weights_RD = torch.from_numpy(numbers(matrix).copy()).double()
    moved_BD, x_BD = moved(matrix, x_BD), x_BD.double()
    offset = 2.0 if matrix.type in QUANTIZED else 0.0
    fp32_BR = (matrix.columns + 8) * 2.0**-24 * (x_BD.abs() @ (weights_RD.abs() + offset).T)
    error_BR = (y_BR.double() - x_BD @ weights_RD.T).abs()
    assert (error_BR <= 1.001 * moved_BD @ weights_RD.abs().T + fp32_BR).all()
    likely_BR = (moved_BD.square() @ weights_RD.square().T / 3).sqrt() + fp32_BR
    # 16 independent results have a mean square within 2.5 times the expected but for one case in 10,000
    if error_BR.numel() >= 16:
        assert (error_BR / likely_BR).square().mean() <= 2.5


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("rows", "columns", "batch", "offset"),
    [
        (1, 1, 1, 0),
        (1, 300, 5, 1),
        (21, 512, 1, 2),
        (17, 800, 2, 7),
        (6, 333, 16, 31),
        (37, 256, 3, 0),
        (9, 1100, 13, 5),
    ],
)
def test_products(kind: BlockType, rows: int, columns: int, batch: int, offset: int, instructions: str) -> None:
    matrix = random_matrix(kind, rows, width(kind, columns), offset)
    x_BD = torch.randn(batch, matrix.columns, generator=torch.Generator().manual_seed(batch))
    x_BD *= torch.logspace(-3, 3, batch)[:, None]
    x_BD[:, : matrix.columns // 3] *= 50  # blocks of different scale
    check_products(matrix, x_BD, multiply(matrix, x_BD))


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_products_do_not_depend_on_threads(kind: BlockType) -> None:
    matrix, before = random_matrix(kind, 45, width(kind, 300)), torch.get_num_threads()
    x_BD = torch.randn(6, matrix.columns)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(multiply(matrix, x_BD))
            assert native().threads() == min(threads, len(os.sched_getaffinity(0)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("rows", "columns", "tokens"),
    [(45, 1300, 210), (33, 64, 1), (300, 32, 5), (7, 600, 16), (64, 256, 40), (530, 96, 33), (40, 64, 1030)],
)
def test_many_rows(kind: BlockType, rows: int, columns: int, tokens: int, instructions: str) -> None:
    """Packed weights: to the bits of a step's products, but with AMX.

    All else: against fp64 products of what is multiplied: bf16 numbers, where the processor multiplies such, or fp32.
    """
    matrix = random_matrix(kind, rows, width(kind, columns), offset=3)
    x_TD = torch.randn(tokens, matrix.columns)
    y_TR = multiply_many(matrix, x_TD)
    assert y_TR.dtype == torch.float32
    if kind in QUANTIZED and instructions != "amx":
        assert torch.equal(y_TR, multiply(matrix, x_TD))
        return
    in_bf16 = instructions in ("avx512_bf16", "amx") and kind is not F32
    weights_RD = (dequantize_bf16 if in_bf16 else dequantize)(matrix).double()
    x_TD = (x_TD.bfloat16() if in_bf16 else x_TD).double()
    exact_TR, magnitude_TR = x_TD @ weights_RD.T, x_TD.abs() @ weights_RD.abs().T
    assert ((y_TR.double() - exact_TR).abs() <= matrix.columns * 2.0**-24 * magnitude_TR).all()


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_many_rows_do_not_depend_on_threads(kind: BlockType) -> None:
    matrix, before = random_matrix(kind, 200, width(kind, 600)), torch.get_num_threads()
    x_TD, results = torch.randn(50, matrix.columns), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(multiply_many(matrix, x_TD))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_extreme_activations(kind: BlockType, instructions: str) -> None:
    """Zeros give zeros; numbers whose reciprocal overflows count as zeros; what is not finite shows, where it is."""
    matrix = random_matrix(kind, 3, 512)
    x_BD = torch.zeros(4, 512)
    x_BD[1] = 1e-40
    x_BD[2, 100] = float("inf")
    x_BD[3, 500] = float("nan")
    y_BR = multiply(matrix, x_BD)
    assert (y_BR[:2] == 0).all()
    assert y_BR[2:].isnan().all()
    if instructions != "amx":
        many_TR = multiply_many(matrix, x_BD.repeat_interleave(5, 0))  # more than are multiplied as a few rows
        assert torch.equal(many_TR.nan_to_num(7), y_BR.repeat_interleave(5, 0).nan_to_num(7))
    x_BD = torch.full((1, 512), 1e30)
    check_products(matrix, x_BD, multiply(matrix, x_BD))


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scale", [0x7C00, 0xFC00, 0x7E00])
@pytest.mark.parametrize("least", [512, 320])
def test_scales_that_are_not_finite_show(kind: BlockType, scale: int, least: int, instructions: str) -> None:
    """In their row and nowhere else: where rows are no whole 256s, the one before looks at its first blocks, too."""
    matrix = random_matrix(kind, 5, columns := width(kind, least))
    for place in SCALES[kind]:
        matrix.data_RB[2, kind.size + place : kind.size + place + 2] = scale & 255, scale >> 8
    finite_BR = multiply(matrix, torch.randn(2, columns)).isfinite()
    assert finite_BR.tolist() == [[True, True, False, True, True]] * 2


def test_no_rows_and_no_activations() -> None:
    assert multiply(random_matrix(Q8_0, 4, 64), torch.ones(0, 64)).shape == (0, 4)
    assert multiply(random_matrix(Q8_0, 4, 64), torch.ones(2, 64, dtype=torch.float64)).dtype == torch.float32
    assert dequantize(random_matrix(Q8_0, 4, 64), 2, 2).shape == (0, 64)
    assert multiply_many(random_matrix(Q8_0, 4, 64), torch.ones(0, 64)).shape == (0, 4)
    assert (multiply_many(random_matrix(Q8_0, 4, 0), torch.ones(3, 0)) == torch.zeros(3, 4)).all()


def test_mistakes() -> None:
    matrix = random_matrix(Q8_0, 4, 64)
    for x_BD in (torch.ones(2, 32), torch.ones(64)):
        with pytest.raises(ValueError, match="64 columns"):
            multiply(matrix, x_BD)
        with pytest.raises(ValueError, match="64 columns"):
            multiply_many(matrix, x_BD)
    with pytest.raises(ValueError, match="4 rows, not 2 to 5"):
        dequantize(matrix, 2, 5)


def test_arrays_of_other_shapes_and_types_are_refused() -> None:
    """By the compiled side itself."""
    module, data_RB = native(), np.zeros((4, 34), np.uint8)
    with pytest.raises(ValueError, match="type 3"):
        module.Matrix(data=data_RB, type=3, columns=32)
    with pytest.raises(ValueError, match="rows of 34 bytes do not hold 64 numbers"):
        module.Matrix(data=data_RB, type=Q8_0.code, columns=64)
    with pytest.raises(ValueError, match="33 numbers are not whole blocks"):
        module.Matrix(data=data_RB, type=Q8_0.code, columns=33)
    for other in (data_RB.astype(np.float32), data_RB[:, ::2], data_RB[0]):
        with pytest.raises(TypeError, match="incompatible"):
            module.Matrix(data=other, type=Q8_0.code, columns=32)
    matrix = module.Matrix(data=data_RB, type=Q8_0.code, columns=32)
    x_BD, y_BR = np.zeros((2, 32), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="y has 3 numbers in dimension 1 where 4 are needed"):
        module.multiply(matrix, x_BD, y_BR[:, :3].copy())
    with pytest.raises(ValueError, match="x has 31 numbers"):
        module.multiply_many(matrix, x_BD[:, :31].copy(), y_BR)
    with pytest.raises(TypeError, match="incompatible"):
        module.multiply(matrix, x_BD.astype(np.float64), y_BR)
    with pytest.raises(ValueError, match="out has 2 numbers"):
        module.dequantize(matrix, 0, 4, np.zeros((2, 32), np.float32))


def test_a_matrix_keeps_its_array_alive_even_one_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(np.arange(8, dtype=np.float32).tobytes())
    mapped = np.memmap(path, np.uint8, "r", shape=(2, 16))
    last_use = weakref.ref(mapped)
    matrix = native().Matrix(data=mapped, type=F32.code, columns=4)
    del mapped
    gc.collect()
    assert last_use() is not None
    out_RD = np.empty((2, 4), np.float32)
    native().dequantize(matrix, 0, 2, out_RD)
    assert out_RD.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    del matrix
    gc.collect()
    assert last_use() is None


def test_an_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="does not run"):
        native().select_instruction_set("neon")


def test_callers_on_several_threads_take_turns() -> None:
    matrix, x_BD = random_matrix(Q4_K, 40, 512), torch.randn(3, 512)
    expected = multiply(matrix, x_BD)
    with ThreadPoolExecutor(4) as callers:
        assert all(torch.equal(y, expected) for y in callers.map(lambda _: multiply(matrix, x_BD), range(200)))


def test_a_forked_process_has_threads_of_its_own() -> None:
    """The parent's are not there: without new ones the child would wait for them for ever."""
    matrix, x_BD = random_matrix(Q8_0, 40, 512), torch.randn(1, 512)
    expected = multiply(matrix, x_BD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what is tested
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if torch.equal(multiply(matrix, x_BD), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_read_bandwidth_is_plausible() -> None:
    assert 1e7 < read_bandwidth(2**22, 2) < 1e13


def instruction_set_of_process(asked: str) -> subprocess.CompletedProcess[str]:
    code = "from moekit.kernels.native import instruction_set; print(instruction_set())"
    environment = os.environ | {"MOEKIT_INSTRUCTION_SET": asked}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_chooses_the_instruction_set() -> None:
    for name in native().instruction_sets():
        assert instruction_set_of_process(name).stdout.strip() == name
    refused = instruction_set_of_process("neon")
    assert refused.returncode
    assert "MOEKIT_INSTRUCTION_SET is 'neon', and this machine runs" in refused.stderr
    assert "portable" in refused.stderr
