"""Rounded numbers of rows: few sizes, little waste, and the same assignments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.kernels import Assignments, assign
from moekit.kernels.torch.padding import padded, rounded_up

CPU = torch.device("cpu")


def some_assignments(seed: int, size: int, tokens: int = 300, experts: int = 5) -> Assignments:
    rng = torch.Generator().manual_seed(seed)
    token_S, expert_S = (torch.randint(n, (size,), generator=rng) for n in (tokens, experts))
    weight_S = torch.rand(size, generator=rng).requires_grad_()
    return assign(token_S, expert_S, weight_S, tokens=tokens, experts=experts)


@given(rows=st.integers(0, 2**20))
def test_rounding_up_wastes_little(rows: int) -> None:
    assert rows <= rounded_up(rows) < rows + max(32, rows / 15)
    assert rounded_up(rounded_up(rows)) == rounded_up(rows)


def test_few_sizes_remain() -> None:
    assert len({rounded_up(rows) for rows in range(4096)}) < 100


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(0, 700))
def test_the_true_assignments_are_where_slots_say(seed: int, size: int) -> None:
    plain = some_assignments(seed, size)
    rounded = padded(plain, CPU, torch.bfloat16)
    for e in range(5):
        begin, end = rounded.expert_offsets[e : e + 2]
        count = plain.expert_offsets[e + 1] - plain.expert_offsets[e]
        assert end - begin == rounded_up(count)
        assert (rounded.weight_S[begin + count : end] == 0).all()
    for name in ("token_S", "weight_S"):
        assert torch.equal(getattr(rounded, name)[rounded.slot_S], getattr(plain, name)[plain.slot_S])


def test_gradients_pass_through() -> None:
    plain = some_assignments(0, 500)
    rounded = padded(plain, CPU, torch.bfloat16)
    factor = torch.arange(500.0)
    actual, expected = (
        torch.autograd.grad(a.weight_S[a.slot_S] @ factor, plain.weight_S, retain_graph=True)[0]
        for a in (rounded, plain)
    )
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_that_are_not_compiled_by_shape_stay_as_they_are(dtype: torch.dtype) -> None:
    plain = some_assignments(0, 500)
    assert padded(plain, CPU, dtype) is plain
