"""Experts and dense networks in one compiled call: against the reference in double precision, output and gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.instruction_sets import using_instruction_set
from tests.kernels.test_experts import BOTH, NONE, Problem, assert_near, in_double, problem, reference
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.config import ActivationName, DenseConfig
from moekit.kernels.activation import Activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.experts_kernel import ExpertWeights
from moekit.kernels.fused.experts import fits_fused, fused_experts
from moekit.kernels.native.module import native
from moekit.kernels.training.compiled import multiplies_bf16, trains
from moekit.nn import FeedForward

pytestmark = [pytest.mark.processor, pytest.mark.skipif(not trains(), reason="needs the compiled operations")]

BIASES = [NONE, (True, False), (False, True), BOTH]
# Rounding to bf16 of inputs of each product and of what is given: 2^-9 each time.
TOLERANCE = 8e-3


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def exactly(task: Problem) -> list[Tensor]:
    return task.each(in_double).solve(reference)


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("name", native().instruction_sets() if trains() else [])
def test_every_instruction_set_is_as_near_the_truth_as_the_reference(name: str, biases: tuple[bool, bool]) -> None:
    task = problem(tokens=300, size=550, width=64, hidden=96, experts=6, dtype=torch.bfloat16, busy=5, biases=biases)
    truth, rounded = exactly(task), task.solve(reference)
    with using_instruction_set(name):
        actual = task.solve(fused_experts)
    for got, same, exact in zip(actual, rounded, truth, strict=True):
        assert got.dtype == same.dtype
        assert (got - exact).norm() <= 1.2 * (same - exact).norm()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 150),
    choices=st.integers(0, 8),
    width=st.integers(1, 40),
    hidden=st.integers(1, 40),
    experts=st.integers(1, 9),
    busy=st.integers(1, 9),
    workers=st.integers(1, 3),
    biases=st.sampled_from(BIASES),
)
def test_any_even_width_and_any_load(
    seed: int,
    tokens: int,
    choices: int,
    width: int,
    hidden: int,
    experts: int,
    busy: int,
    workers: int,
    biases: tuple[bool, bool],
) -> None:
    # As many as routers make: rounding adds up over all that a token's experts give.
    size = tokens * choices
    task = problem(
        tokens, size, 2 * width, 2 * hidden, experts, torch.bfloat16, seed, busy=min(busy, experts), biases=biases
    )
    with threads(workers):
        actual = task.solve(fused_experts)
    for got, exact in zip(actual, exactly(task), strict=True):
        # What is computed is of unit scale, also where single numbers happen to cancel.
        assert (got.double() - exact).norm() <= 2 * TOLERANCE * (exact.norm() + exact.numel() ** 0.5)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", get_args(ActivationName))
def test_every_activation(name: ActivationName, gated: bool) -> None:
    task = problem(tokens=40, size=90, hidden=32, dtype=torch.bfloat16, biases=BOTH)
    if not gated:
        assert task.gate_up_bias_EG is not None
        up_EGD, up_bias_EG = task.gate_up_EGD[:, ::2].contiguous(), task.gate_up_bias_EG[:, ::2].contiguous()
        task = task._replace(gate_up_EGD=up_EGD, gate_up_bias_EG=up_bias_EG)
    activation = Activation(name, gated)
    expected = task.each(in_double).solve(partial(reference, activation=activation))
    actual = task.solve(partial(fused_experts, activation=activation))
    assert_near([grad.double() for grad in actual], expected, TOLERANCE)


@pytest.mark.parametrize("biases", [NONE, BOTH])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_fp32_parameters_get_fp32_gradients_as_autocast_gives_them(
    x_dtype: torch.dtype, biases: tuple[bool, bool]
) -> None:
    task = problem(tokens=300, size=550, width=64, hidden=96, experts=6, dtype=torch.float32, biases=biases)
    leaves = task.differentiable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_TD = task.call(fused_experts, [leaves[0].to(x_dtype), *leaves[1:]])
    assert y_TD.dtype == torch.bfloat16
    y_TD.backward(task.grad_y_TD.bfloat16())
    assert_near([y_TD.detach().double(), *(leaf.grad.double() for leaf in leaves)], exactly(task), TOLERANCE)


@pytest.mark.parametrize("experts", [1, 3, 40])
def test_the_number_of_threads_changes_no_bit(experts: int) -> None:
    task = problem(tokens=700, size=1500, width=64, hidden=96, experts=experts, dtype=torch.bfloat16, biases=BOTH)
    with threads(1):
        first = task.solve(fused_experts)
    for count in (2, 3, 3):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(task.solve(fused_experts), first, strict=True))


@pytest.mark.parametrize("biases", [NONE, BOTH])
def test_nothing_assigned_is_zeros_with_zero_gradients(biases: tuple[bool, bool]) -> None:
    torch.full((200,), torch.nan)  # what is allocated next may hold anything
    for result in problem(tokens=3, size=0, dtype=torch.bfloat16, biases=biases).solve(fused_experts):
        assert (result == 0).all()


def test_no_tokens_at_all() -> None:
    task = problem(tokens=1, size=0, dtype=torch.bfloat16)
    y_TD, grad_x_TD, *grads = task._replace(x_TD=task.x_TD[:0], grad_y_TD=task.grad_y_TD[:0]).solve(fused_experts)
    assert y_TD.shape == grad_x_TD.shape == (0, 8)
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("wanted", [*product([False, True], repeat=4)])
def test_gradients_only_where_they_are_asked_for(wanted: tuple[bool, ...]) -> None:
    task = problem(tokens=60, size=150, dtype=torch.bfloat16)
    expected = task.solve(fused_experts)
    leaves = [leaf.requires_grad_(asked) for leaf, asked in zip(task.differentiable(), wanted, strict=True)]
    y_TD = task.call(fused_experts, leaves)
    assert y_TD.requires_grad == any(wanted)
    assert torch.equal(y_TD.detach(), expected[0])
    if any(wanted):
        y_TD.backward(task.grad_y_TD)
    for leaf, asked, grad in zip(leaves, wanted, expected[1:], strict=True):
        assert torch.equal(leaf.grad, grad) if asked else leaf.grad is None


@pytest.mark.parametrize("shape", [(3, 7), (0,), (5,)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_dense_network_is_one_expert_of_all_tokens(shape: tuple[int, ...], *, bias: bool, gated: bool) -> None:
    torch.manual_seed(0)
    network = FeedForward(8, DenseConfig(width=12, bias=bias, gated=gated)).double()
    x = torch.randn(*shape, 8, dtype=torch.double)
    expected = network(leaf := x.clone().requires_grad_())
    expected.sum().backward()
    right = [expected.detach(), leaf.grad, *(parameter.grad for parameter in network.parameters())]
    network.zero_grad()
    network.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(leaf := x.float().requires_grad_())
    y.sum().backward()
    assert (type(y.grad_fn.next_functions[0][0]).__name__ == "_ExpertsBackward") == multiplies_bf16()
    for got, wanted in zip([y, leaf.grad, *(p.grad for p in network.parameters())], right, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).norm() <= 2 * TOLERANCE * wanted.norm()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    task = problem(tokens=60, size=150, dtype=torch.bfloat16)

    def checkpointed(x_TD: Tensor, assignments: Assignments, weights: ExpertWeights) -> Tensor:
        def recomputed(x_TD: Tensor, weight_S: Tensor) -> Tensor:
            return fused_experts(x_TD, assignments._replace(weight_S=weight_S), weights)

        return checkpoint(recomputed, x_TD, assignments.weight_S, use_reentrant=reentrant)

    assert all(torch.equal(a, b) for a, b in zip(task.solve(checkpointed), task.solve(fused_experts), strict=True))


def test_a_second_derivative_is_refused() -> None:
    task = problem(dtype=torch.bfloat16)
    x_TD, weight_S, gate_up_EGD, down_EDF = task.differentiable()
    y_TD = fused_experts(x_TD, task.assignments(weight_S), ExpertWeights(gate_up_EGD, down_EDF))
    (grad_x_TD,) = torch.autograd.grad(y_TD, x_TD, task.grad_y_TD.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_x_TD.sum().backward()


def test_ids_that_do_not_exist_are_refused() -> None:
    task = problem(dtype=torch.bfloat16)
    assignments = task.assignments(task.weight_S)
    weights = ExpertWeights(task.gate_up_EGD, task.down_EDF)
    for wrong in (
        assignments._replace(token_S=assignments.token_S + 1),
        assignments._replace(slot_S=assignments.slot_S - 1),
        assignments._replace(token_offsets_T=assignments.token_offsets_T[:-1]),
        assignments._replace(expert_offsets=(0, 9, 5, 12, 20)),
    ):
        with pytest.raises(ValueError, match=r"has the number|other sizes|must not fall"):
            fused_experts(task.x_TD, wrong, weights)


def test_what_it_is_for() -> None:
    weights = ExpertWeights(torch.zeros(2, 8, 4), torch.zeros(2, 4, 4))
    x_TD = torch.zeros(3, 4)
    assert not fits_fused(x_TD, weights)  # fp32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fits_fused(x_TD, weights) == multiplies_bf16()
        assert not fits_fused(x_TD.double(), weights)
        assert not fits_fused(torch.zeros(3, 3), ExpertWeights(torch.zeros(2, 8, 3), torch.zeros(2, 3, 4)))  # odd
        assert not fits_fused(x_TD, weights._replace(down_EDF=torch.zeros(2, 4, 4).transpose(1, 2)[:, ::1]))
    assert fits_fused(x_TD.bfloat16(), weights.to(torch.bfloat16)) == multiplies_bf16()
