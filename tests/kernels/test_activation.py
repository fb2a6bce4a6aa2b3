"""The activation between a feed-forward network's two products, against its definition."""

from typing import get_args

import pytest
import torch

from moekit.config import ActivationName
from moekit.kernels.activation import Activation, plain_activation

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
