"""The gated activation against its definition."""

import pytest
import torch
import torch.nn.functional as F

from moekit.kernels.torch.activation import gated_activation


@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 10), (0, 4)])
def test_equals_its_definition(shape: tuple[int, ...]) -> None:
    gate_up = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn((*shape[:-1], shape[-1] // 2), dtype=torch.float64)
    gate, up = gate_up.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    actual = gated_activation(gate_up)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, gate_up, grad) for y in (actual, expected)))


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(gated_activation, torch.randn(3, 8, dtype=torch.float64, requires_grad=True))


def test_its_input_is_left_alone() -> None:
    gate_up = torch.randn(4, 6)
    before = gate_up.clone()
    with torch.no_grad():
        gated_activation(gate_up)
    assert torch.equal(gate_up, before)
