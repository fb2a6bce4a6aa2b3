"""The activation between a feed-forward network's two products, against its definition."""

from typing import get_args

import pytest
import torch
from tests.kernels.instruction_sets import using_instruction_set

from moekit.config import ActivationName
from moekit.kernels.activation import Activation, plain_activation
from moekit.kernels.native.module import native
from moekit.kernels.training.compiled import trains

ALL = [Activation(name, gated) for name in get_args(ActivationName) for gated in (True, False)]


@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 10), (0, 4)])
@pytest.mark.parametrize("activation", ALL, ids=str)
def test_equals_its_definition(shape: tuple[int, ...], activation: Activation) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected, actual = plain_activation(x, activation), activation(x)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad) for y in (actual, expected)))


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_gradients_by_finite_differences(activation: Activation) -> None:
    assert torch.autograd.gradcheck(activation, torch.randn(3, 8, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_without_gradients_the_same_and_its_input_is_left_alone(activation: Activation) -> None:
    x = torch.randn(4, 6)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(activation(x), plain_activation(x, activation))
    assert torch.equal(x, before)


@pytest.mark.processor
@pytest.mark.parametrize("activation", ALL, ids=str)
def test_every_instruction_set_equals_the_definition_to_the_rounding_of_bf16(activation: Activation) -> None:
    for name in native().instruction_sets() if trains() else []:
        for width in (1, 16, 17, 45):  # with and without a vector's remainder
            x = torch.randn(5, 2 * width if activation.gated else width).bfloat16().requires_grad_()
            grad = torch.randn(5, width).bfloat16()
            exact = x.detach().double().requires_grad_()
            with using_instruction_set(name):
                y = activation(x)
                y.backward(grad)
            expected = plain_activation(exact, activation)
            expected.backward(grad.double())
            assert isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction)
            for got, right in ((y, expected), (x.grad, exact.grad)):
                assert (got.double() - right).norm() <= 6e-3 * right.norm(), (name, width)


@pytest.mark.parametrize("name", get_args(ActivationName))
def test_in_bf16_far_from_zero_and_where_it_is_not_finite(name: ActivationName) -> None:
    x = torch.tensor([-200.0, -50, -8, 0, 8, 50, 200, torch.nan])
    leaf, plain = x.bfloat16().requires_grad_(), x.requires_grad_()
    y, expected = Activation(name, gated=False)(leaf), plain_activation(plain, Activation(name, gated=False))
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(y.float(), expected, equal_nan=True, rtol=4e-3, atol=1e-5)
    torch.testing.assert_close(leaf.grad[:-1].float(), plain.grad[:-1], rtol=4e-3, atol=1e-5)
