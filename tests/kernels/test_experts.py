"""Experts: the fast kernel against the reference, output and every gradient.

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F, E experts, K experts per token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import NamedTuple, get_args
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import moekit.kernels.torch.experts as torch_backend
from moekit.config import ActivationName
from moekit.kernels.activation import Activation
from moekit.kernels.assignments import Assignments, assign
from moekit.kernels.backends import experts_kernel
from moekit.kernels.experts_kernel import ExpertsKernel, ExpertWeights
from moekit.kernels.torch.grouped import fits_grouped, grouped_experts

pytestmark = pytest.mark.processor

reference = experts_kernel("reference")
fast = experts_kernel("torch")
NONE, BOTH = (False, False), (True, True)


class Problem(NamedTuple):
    x_TD: Tensor
    weight_S: Tensor
    gate_up_EGD: Tensor
    down_EDF: Tensor
    token_S: Tensor
    expert_S: Tensor
    grad_y_TD: Tensor
    gate_up_bias_EG: Tensor | None = None
    down_bias_ED: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> "Problem":
        return Problem(*(None if tensor is None else function(tensor) for tensor in self))  # type: ignore[arg-type]

    def differentiable(self) -> list[Tensor]:
        biases = [bias for bias in (self.gate_up_bias_EG, self.down_bias_ED) if bias is not None]
        return [tensor.clone().requires_grad_() for tensor in (*self[:4], *biases)]

    def assignments(self, weight_S: Tensor) -> Assignments:
        tokens, experts = self.x_TD.shape[0], self.down_EDF.shape[0]
        return assign(self.token_S, self.expert_S, weight_S, tokens=tokens, experts=experts)

    def call(self, kernel: ExpertsKernel, leaves: Sequence[Tensor]) -> Tensor:
        """y_TD of tensors as `differentiable` gives them."""
        x_TD, weight_S, gate_up_EGD, down_EDF, *rest = leaves
        named = {name: rest.pop(0) for name in ("gate_up_bias_EG", "down_bias_ED") if getattr(self, name) is not None}
        return kernel(x_TD, self.assignments(weight_S), ExpertWeights(gate_up_EGD, down_EDF, **named))

    def solve(self, kernel: ExpertsKernel) -> list[Tensor]:
        """y_TD and the gradients of x_TD, weight_S, the matrices and the biases that are there."""
        leaves = self.differentiable()
        y_TD = self.call(kernel, leaves)
        y_TD.backward(self.grad_y_TD)
        return [y_TD.detach(), *(leaf.grad for leaf in leaves)]


def problem(
    tokens: int = 7,
    size: int = 20,
    width: int = 8,
    hidden: int = 12,
    experts: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    busy: int | None = None,
    biases: tuple[bool, bool] = (False, False),
) -> Problem:
    """Unit-scale inputs. Tokens and experts are drawn with replacement: some come twice, some never.

    busy: how many of the experts get any work; all may, if None. biases: whether gate and up, and down, have theirs.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, fan_in: int = 1) -> Tensor:
        return (torch.randn(shape, generator=rng, dtype=torch.float64) * fan_in**-0.5).to(dtype)

    return Problem(
        x_TD=normal(tokens, width),
        weight_S=normal(size),
        gate_up_EGD=normal(experts, 2 * hidden, width, fan_in=width),
        down_EDF=normal(experts, width, hidden, fan_in=hidden),
        token_S=torch.randint(tokens, (size,), generator=rng),
        expert_S=torch.randint(busy or experts, (size,), generator=rng),
        grad_y_TD=normal(tokens, width),
        gate_up_bias_EG=normal(experts, 2 * hidden) if biases[0] else None,
        down_bias_ED=normal(experts, width) if biases[1] else None,
    )


def in_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@contextmanager
def on_workers(always: bool) -> Iterator[None]:
    """Workers for every call, however small, or for none."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with mock.patch.object(torch_backend, "_worth_waking_workers", return_value=always):
        yield
    torch.set_num_threads(before)


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("y", "grad x", "grad weight", "grad gate_up", "grad down", "grad of a bias", "grad of the other bias")
    assert len(actual) == len(expected)
    for name, a, b in zip(names, actual, expected, strict=False):
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    size=st.integers(0, 120),
    width=st.integers(1, 24),
    hidden=st.integers(1, 24),
    experts=st.integers(1, 9),
    busy=st.integers(1, 9),
    workers=st.booleans(),
    biases=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_equals_the_reference(
    seed: int,
    tokens: int,
    size: int,
    width: int,
    hidden: int,
    experts: int,
    busy: int,
    workers: bool,
    biases: tuple[bool, bool],
    dtype: torch.dtype,
) -> None:
    task = problem(tokens, size, width, hidden, experts, dtype, seed, min(busy, experts), biases)
    with on_workers(workers):
        actual = task.solve(fast)
    assert_near(actual, task.solve(reference), 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("workers", "biases"), [(False, NONE), (True, NONE), (True, BOTH)])
def test_equals_the_reference_at_working_size(dtype: torch.dtype, workers: bool, biases: tuple[bool, bool]) -> None:
    task = problem(tokens=700, size=1500, width=64, hidden=96, experts=6, dtype=dtype, busy=5, biases=biases)
    with on_workers(workers):
        actual = task.solve(fast)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert_near(actual, task.solve(reference), tolerance)


@pytest.mark.parametrize("biases", [NONE, BOTH])
def test_bfloat16_is_as_near_the_truth_as_the_reference(biases: tuple[bool, bool]) -> None:
    task = problem(tokens=500, size=900, width=64, hidden=96, experts=6, dtype=torch.bfloat16, biases=biases)
    truth = task.each(in_double).solve(reference)
    for actual, rounded, exact in zip(task.solve(fast), task.solve(reference), truth, strict=True):
        assert (actual - exact).norm() <= 1.2 * (rounded - exact).norm()


@pytest.mark.parametrize(("workers", "biases"), [(False, NONE), (True, NONE), (True, BOTH)])
def test_gradients_by_finite_differences(workers: bool, biases: tuple[bool, bool]) -> None:
    task = problem(tokens=4, size=7, width=3, hidden=5, experts=3, biases=biases)
    with on_workers(workers):
        assert torch.autograd.gradcheck(lambda *leaves: task.call(fast, leaves), task.differentiable())


@pytest.mark.parametrize("biases", [NONE, BOTH])
def test_nothing_assigned_is_zeros_with_zero_gradients(biases: tuple[bool, bool]) -> None:
    for result in problem(tokens=3, size=0, biases=biases).solve(fast):
        assert (result == 0).all()


def test_no_tokens_at_all() -> None:
    task = problem(tokens=1, size=0)
    task = task._replace(x_TD=task.x_TD[:0], grad_y_TD=task.grad_y_TD[:0])
    y_TD, grad_x_TD, *grads = task.solve(fast)
    assert y_TD.shape == grad_x_TD.shape == (0, 8)
    assert all((grad == 0).all() for grad in grads)


def test_one_expert_for_every_token_is_the_dense_network() -> None:
    task = problem(tokens=5, size=5, experts=1)._replace(token_S=torch.arange(5), weight_S=torch.ones(5).double())
    gate_TF, up_TF = (task.x_TD @ task.gate_up_EGD[0].t()).chunk(2, dim=1)
    y_TD = (torch.nn.functional.silu(gate_TF) * up_TF) @ task.down_EDF[0].t()
    torch.testing.assert_close(task.solve(fast)[0], y_TD)


@pytest.mark.parametrize("kernel", [reference, fast, grouped_experts])
def test_the_bias_of_down_is_weighted_with_the_rest(kernel: ExpertsKernel) -> None:
    task = problem(tokens=5, size=5, hidden=8, experts=1, dtype=torch.float32, biases=BOTH)
    task = task._replace(token_S=torch.arange(5), weight_S=torch.linspace(-1, 2, 5))
    assert task.gate_up_bias_EG is not None
    assert task.down_bias_ED is not None
    gate_TF, up_TF = (task.x_TD @ task.gate_up_EGD[0].t() + task.gate_up_bias_EG[0]).chunk(2, dim=1)
    y_TD = (torch.nn.functional.silu(gate_TF) * up_TF) @ task.down_EDF[0].t() + task.down_bias_ED[0]
    torch.testing.assert_close(task.solve(kernel)[0], y_TD * task.weight_S[:, None])


ONE_OF_SIX = [tuple(place == chosen for place in range(6)) for chosen in range(6)]
ALL_BUT_ONE = [tuple(not asked for asked in wanted) for wanted in ONE_OF_SIX]


@pytest.mark.parametrize("wanted", [*product([False, True], repeat=4), *ONE_OF_SIX, *ALL_BUT_ONE])
def test_gradients_only_where_they_are_asked_for(wanted: tuple[bool, ...]) -> None:
    task = problem(biases=BOTH if len(wanted) == 6 else NONE)
    expected = task.solve(reference)
    leaves = [leaf.requires_grad_(asked) for leaf, asked in zip(task.differentiable(), wanted, strict=True)]
    y_TD = task.call(fast, leaves)
    assert y_TD.requires_grad == any(wanted)
    torch.testing.assert_close(y_TD.detach(), expected[0])
    if any(wanted):
        y_TD.backward(task.grad_y_TD)
    for leaf, asked, grad in zip(leaves, wanted, expected[1:], strict=True):
        if asked:
            torch.testing.assert_close(leaf.grad, grad)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("workers", [False, True])
def test_without_gradients_nothing_is_saved(mode: type[torch.no_grad], workers: bool) -> None:
    task = problem(biases=BOTH)
    leaves = task.differentiable()
    saved: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks, on_workers(workers):
        with mode(), mock.patch.object(torch_backend, "_Experts", None):
            y_TD = task.call(fast, leaves)
        assert not saved
        assert y_TD.grad_fn is None
        task.call(fast, leaves)
        assert saved
    torch.testing.assert_close(y_TD, task.solve(reference)[0])


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biases", [NONE, BOTH])
def test_autocast_multiplies_in_bfloat16_and_returns_gradients_of_the_parameters_dtype(
    inside: bool, x_dtype: torch.dtype, biases: tuple[bool, bool]
) -> None:
    task = problem(tokens=700, size=1500, width=64, hidden=96, experts=6, dtype=torch.float32, biases=biases)
    leaves = task.differentiable()
    with on_workers(True), torch.autocast("cpu", dtype=torch.bfloat16):
        y_TD = task.call(fast, [leaves[0].to(x_dtype), *leaves[1:]])
        assert y_TD.dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=inside):
            y_TD.backward(task.grad_y_TD.bfloat16())
    assert_near([y_TD.detach().float(), *(leaf.grad for leaf in leaves)], task.solve(reference), 2e-2)


def test_router_weights_may_be_more_precise_than_the_rest() -> None:
    task = problem(tokens=50, size=90, dtype=torch.bfloat16)
    task = task._replace(weight_S=task.weight_S.float())
    assert_near(task.solve(fast), task.solve(reference), 1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    task = problem()

    def checkpointed(x_TD: Tensor, assignments: Assignments, weights: ExpertWeights) -> Tensor:
        def recomputed(x_TD: Tensor, weight_S: Tensor) -> Tensor:
            return fast(x_TD, assignments._replace(weight_S=weight_S), weights)

        return checkpoint(recomputed, x_TD, assignments.weight_S, use_reentrant=reentrant)

    assert_near(task.solve(checkpointed), task.solve(reference), 1e-10)


def test_strided_inputs_and_gradients() -> None:
    task = problem()
    expanded = task._replace(
        x_TD=task.x_TD.t().contiguous().t(),
        gate_up_EGD=task.gate_up_EGD.transpose(1, 2).contiguous().transpose(1, 2),
        grad_y_TD=torch.ones((), dtype=torch.float64).expand(task.grad_y_TD.shape),
    )
    assert_near(expanded.solve(fast), expanded.solve(reference), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_from_run_to_run(dtype: torch.dtype) -> None:
    task = problem(tokens=700, size=1500, width=64, hidden=96, experts=6, dtype=dtype)
    with on_workers(True):
        first = task.solve(fast)
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(task.solve(fast), first, strict=True))


def test_a_second_derivative_is_refused() -> None:
    task = problem()
    x_TD, weight_S, gate_up_EGD, down_EDF = task.differentiable()
    y_TD = fast(x_TD, task.assignments(weight_S), ExpertWeights(gate_up_EGD, down_EDF))
    (grad_x_TD,) = torch.autograd.grad(y_TD, x_TD, task.grad_y_TD.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_x_TD.sum().backward()


@pytest.mark.parametrize("biases", [NONE, (True, False), (False, True), BOTH])
@pytest.mark.parametrize(("tokens", "size", "busy"), [(7, 20, None), (5, 1, 1), (9, 40, 2), (4, 0, None)])
def test_grouped_products_equal_the_reference(
    tokens: int, size: int, busy: int | None, biases: tuple[bool, bool]
) -> None:
    """They are meant for GPUs, but torch computes them on a CPU too: their arithmetic is checked without a GPU."""
    given = problem(tokens, size, width=8, hidden=16, dtype=torch.float32, busy=busy, biases=biases)
    for got, expected in zip(given.solve(grouped_experts), given.solve(reference), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_cpu_has_something_better() -> None:
    assert not fits_grouped(torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2, 8, 8, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("biases", [NONE, BOTH])
def test_a_gpu_takes_it_and_agrees_with_the_cpu(biases: tuple[bool, bool]) -> None:
    given = problem(64, 200, width=64, hidden=32, dtype=torch.bfloat16, biases=biases)
    device = given.each(lambda tensor: tensor.cuda())
    assert fits_grouped(device.x_TD, device.down_EDF)
    expected = given.each(in_double).solve(reference)
    for got, wanted in zip(device.solve(experts_kernel("torch")), expected, strict=True):
        assert (got.cpu().double() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("kernel", [fast, grouped_experts])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", get_args(ActivationName))
def test_every_activation_equals_the_reference(kernel: ExpertsKernel, name: ActivationName, gated: bool) -> None:
    given = problem(dtype=torch.float32, hidden=16, biases=BOTH)
    if not gated:
        assert given.gate_up_bias_EG is not None
        up_EGD, up_bias_EG = given.gate_up_EGD[:, ::2].contiguous(), given.gate_up_bias_EG[:, ::2].contiguous()
        given = given._replace(gate_up_EGD=up_EGD, gate_up_bias_EG=up_bias_EG)
    activation = Activation(name, gated)
    expected = given.solve(partial(reference, activation=activation))
    for got, wanted in zip(given.solve(partial(kernel, activation=activation)), expected, strict=True):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    with torch.no_grad():
        y_TD = given.call(partial(kernel, activation=activation), given.differentiable())
    torch.testing.assert_close(y_TD, expected[0], rtol=1e-4, atol=1e-5)
