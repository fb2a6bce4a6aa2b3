"""Packed types against the `gguf` package, bit for bit, and the search for scales against llama.cpp's figures."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as package_dequantize
from gguf.quants import quantize as package_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.kernels.packed import (
    BF16,
    BLOCK_TYPES,
    F16,
    F32,
    Q3_K,
    Q4_0,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_0,
    BlockType,
    PackedMatrix,
)
from moekit.kernels.packed import dequantize as numbers_of
from moekit.kernels.packed.k_quants import q4_k
from moekit.kernels.packed.quantize_blocks import quantize

NAMES = [kind.name for kind in BLOCK_TYPES]


def numbers(spread: str = "normal", rows: int = 12, columns: int = 512) -> Tensor:
    x_RC = torch.randn(rows, columns)
    return {"normal": x_RC * 0.02, "heavy": x_RC**3, "shifted": x_RC + 1, "tiny": x_RC * 1e-6}[spread]


def dequantize(matrix: PackedMatrix) -> Tensor:
    return torch.from_numpy(numbers_of(matrix))


def relative_error(x_RC: Tensor, kind: BlockType) -> float:
    return float((dequantize(quantize(x_RC, kind)) - x_RC).square().mean() / x_RC.square().mean())


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=NAMES)
def test_any_bytes_mean_the_same_numbers_as_to_the_package(kind: BlockType) -> None:
    data_RB = torch.randint(0, 256, (40, kind.row_bytes(512)), dtype=torch.uint8).numpy()
    ours = numbers_of(PackedMatrix(data_RB, kind, 512))
    with np.errstate(invalid="ignore"):  # random bytes are infinite scales, too
        theirs = package_dequantize(data_RB, GGMLQuantizationType(kind.code))
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all()


@pytest.mark.parametrize("kind", [F32, F16, BF16, Q8_0, Q4_0], ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_packing_is_the_package_s_bit_for_bit(kind: BlockType, data: st.DataObject) -> None:
    # Values that meet halves of a step and equal magnitudes of both signs, where rounding and the choice show.
    values = data.draw(
        st.lists(
            st.sampled_from([-4.0, -3.5, -1.5, -0.5, 0.0, 0.5, 1.25, 2.0, 4.0]) | st.floats(-8, 8, width=32),
            min_size=32,
            max_size=32,
        )
    )
    x_RC = torch.tensor([values, values[::-1]])
    theirs = package_quantize(x_RC.numpy(), GGMLQuantizationType(kind.code))
    assert np.array_equal(quantize(x_RC, kind).data_RB, theirs.view(np.uint8))


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=NAMES)
def test_packing_meets_every_spread_of_numbers(kind: BlockType) -> None:
    # Squared error over squared size, for normal numbers.
    most = {F32: 0, F16: 1e-7, BF16: 1e-5, Q8_0: 4e-5, Q6_K: 4e-4, Q4_K: 6e-3, Q4_0: 9e-3}[kind]
    assert relative_error(numbers("normal"), kind) <= most
    assert relative_error(numbers("heavy"), kind) <= 3 * most
    assert relative_error(numbers("shifted"), kind) <= 1.5 * most
    zeros = torch.zeros(2, 256)
    assert torch.equal(dequantize(quantize(zeros, kind)), zeros)


@pytest.mark.parametrize("kind", [Q4_K, Q6_K], ids=lambda kind: kind.name)
def test_sub_blocks_of_one_value_survive(kind: BlockType) -> None:
    x_RC = torch.tensor([[0.5] * 32 + [-0.25] * 32 + [0.0] * 64 + [1.0] * 128])
    assert (dequantize(quantize(x_RC, kind)) - x_RC).abs().max() < 0.02


def test_q4_k_has_less_error_than_one_pass_of_rounding() -> None:
    """What a plain fit of each sub-block to its range gives: the least that a search has to beat."""
    x_RC = numbers()
    sub = x_RC.view(-1, 32)
    low, high = sub.amin(-1, keepdim=True).clamp(max=0), sub.amax(-1, keepdim=True)
    step = (high - low) / 15
    plain = ((sub - low) / step).round() * step + low
    assert relative_error(x_RC, Q4_K) < 0.93 * float((plain - sub).square().mean() / sub.square().mean())


def test_levels_on_a_grid_are_found_again() -> None:
    """Numbers that a block can hold exactly come back as they were: scales, minima and levels of Q4_K, unharmed."""
    scale, minimum = torch.randint(8, 64, (6, 8)).float(), torch.randint(0, 64, (6, 8)).float()
    scale[:, 0] = minimum[:, 1] = 63  # the block's units are then those that the integers were drawn with
    levels = torch.randint(0, 16, (6, 8, 32)).float()
    levels[:, :, 0], levels[:, :, 1] = 0, 15
    x_NC = (2**-9 * scale[..., None] * levels - 2**-8 * minimum[..., None]).flatten(1)
    error = (dequantize(PackedMatrix(q4_k(x_NC).numpy(), Q4_K, 256)) - x_NC).abs().max()
    assert error <= 1e-3 * x_NC.abs().max()


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="not whole blocks of 256"):
        quantize(torch.zeros(2, 288), Q4_K)


def test_many_blocks_are_packed_in_chunks_that_agree() -> None:
    x_RC = numbers(rows=600)
    whole = quantize(x_RC, Q4_K).data_RB
    assert np.array_equal(whole[-1:], quantize(x_RC[-1:], Q4_K).data_RB)
    assert np.array_equal(whole[:3], quantize(x_RC[:3], Q4_K).data_RB)


# Squared error over squared size of normal, heavy and shifted numbers (below), as llama.cpp's reference packs them:
# ggml_quantize_chunk of llama-cpp-python 0.3.36, without an importance matrix.
LLAMA_CPP = {
    Q3_K: {"normal": 2.26e-2, "heavy": 2.33e-2, "shifted": 1.86e-2},
    Q4_K: {"normal": 5.12e-3, "heavy": 8.08e-3, "shifted": 2.51e-3},
    Q5_K: {"normal": 1.30e-3, "heavy": 2.49e-3, "shifted": 6.33e-4},
    Q6_K: {"normal": 3.14e-4, "heavy": 6.05e-4, "shifted": 2.72e-4},
}


@pytest.mark.parametrize("kind", LLAMA_CPP, ids=lambda kind: kind.name)
def test_k_quants_lose_no_more_than_llama_cpp_s(kind: BlockType) -> None:
    """By the `gguf` package's own unpacking, which is also how those that moekit does not compute with are read."""
    torch.manual_seed(0)
    for spread, theirs in LLAMA_CPP[kind].items():
        x_RC = numbers(spread, 64, 1024)
        data_RB = quantize(x_RC, kind).data_RB
        unpacked = torch.from_numpy(package_dequantize(data_RB, GGMLQuantizationType(kind.code)))
        assert float((unpacked - x_RC).square().mean() / x_RC.square().mean()) < 1.02 * theirs, spread
        assert data_RB.shape == (64, kind.row_bytes(1024))
