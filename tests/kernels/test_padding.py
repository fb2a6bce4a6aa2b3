"""Rounded numbers of rows: few sizes, little waste, and the same assignments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.kernels.assignments import Assignments, assign
from moekit.kernels.torch.padding import padded, rounded_up, runs_of

pytestmark = pytest.mark.processor

CPU = torch.device("cpu")


def some_assignments(seed: int, size: int, tokens: int = 300, experts: int = 5) -> Assignments:
    rng = torch.Generator().manual_seed(seed)
    token_S, expert_S = (torch.randint(n, (size,), generator=rng) for n in (tokens, experts))
    weight_S = torch.rand(size, generator=rng).requires_grad_()
    return assign(token_S, expert_S, weight_S, tokens=tokens, experts=experts)


@given(rows=st.integers(0, 2**20))
def test_rounding_up_wastes_little(rows: int) -> None:
    assert rows <= rounded_up(rows) < rows + max(32, 64 * (rows >= 512), rows / 15)
    assert rounded_up(rounded_up(rows)) == rounded_up(rows)


def test_few_sizes_remain() -> None:
    assert len({rounded_up(rows) for rows in range(4096)}) < 100


@given(
    sizes=st.lists(st.integers(0, 40), max_size=40),
    most_waste=st.integers(-1, 60),
)
def test_runs_cover_the_experts_with_work(sizes: list[int], most_waste: int) -> None:
    """Each once and in order, rows one after the other, and no more padding than joining is worth."""
    runs = runs_of(sizes, most_waste)
    covered = [expert for run in runs for expert in range(run.first, run.first + run.experts)]
    assert covered == [expert for expert, size in enumerate(sizes) if size]
    begin = 0
    for run in runs:
        own = sizes[run.first : run.first + run.experts]
        assert run.begin == begin
        assert run.rows == max(own)
        assert run.experts in (1, 4, 16)
        assert run.experts * run.rows - sum(own) <= max(0, most_waste) * (run.experts - 1)
        begin = run.end


def test_even_loads_are_joined_and_a_hot_expert_stays_alone() -> None:
    assert [run.experts for run in runs_of([32] * 21, most_waste=0)] == [16, 4, 1]
    assert [run.experts for run in runs_of([32] * 4 + [640] + [32] * 4, most_waste=32)] == [4, 1, 4]
    assert [run.experts for run in runs_of([32] * 4, most_waste=-1)] == [1] * 4


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(0, 700), a_row=st.sampled_from([10_000, 10**9]))
def test_the_true_assignments_are_where_slots_say(seed: int, size: int, a_row: int) -> None:
    plain = some_assignments(seed, size)
    filled, runs = padded(plain, CPU, torch.bfloat16, a_row)
    rows = {run.first + index: run.rows for run in runs for index in range(run.experts)}
    for e in range(5):
        begin, end = filled.expert_offsets[e : e + 2]
        count = plain.expert_offsets[e + 1] - plain.expert_offsets[e]
        assert end - begin == rows.get(e, 0) >= rounded_up(count)
        assert (filled.weight_S[begin + count : end] == 0).all()
    for name in ("token_S", "weight_S"):
        assert torch.equal(getattr(filled, name)[filled.slot_S], getattr(plain, name)[plain.slot_S])


def test_gradients_pass_through() -> None:
    plain = some_assignments(0, 500)
    filled, _ = padded(plain, CPU, torch.bfloat16, 10_000)
    factor = torch.arange(500.0)
    actual, expected = (
        torch.autograd.grad(a.weight_S[a.slot_S] @ factor, plain.weight_S, retain_graph=True)[0]
        for a in (filled, plain)
    )
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_experts_of_dtypes_that_are_not_compiled_by_shape_stay_as_they_are(dtype: torch.dtype) -> None:
    plain = some_assignments(0, 500)
    assert padded(plain, CPU, dtype, 10**9)[0] is plain
