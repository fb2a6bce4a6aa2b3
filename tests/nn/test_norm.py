"""RMSNorm against torch's own, and its gradient."""

import pytest
import torch

from moekit.nn import RMSNorm


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equals_torch(shape: tuple[int, ...], scale: float) -> None:
    norm = RMSNorm(8, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    x = (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    expected = torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=0)
    towards = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * towards).sum(), [x, norm.weight])
    for got, right in zip(torch.autograd.grad((norm(x) * towards).sum(), [x, norm.weight]), wanted, strict=True):
        assert (got - right).norm() <= 1e-11 * right.norm()


def test_gradcheck() -> None:
    norm = RMSNorm(5, eps=1e-5).double()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)


def test_computes_in_fp32_and_gives_what_products_read() -> None:
    norm = RMSNorm(64, eps=1e-5)
    x = 1e4 + torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = norm(x)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, norm(x).bfloat16())
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_a_model_that_is_all_bf16_learns() -> None:
    x = torch.randn(5, 16)
    expected, got = RMSNorm(16, 1e-5), RMSNorm(16, 1e-5).bfloat16()
    inputs = x.clone().requires_grad_(), x.bfloat16().requires_grad_()
    for norm, own in zip((expected, got), inputs, strict=True):
        (norm(own) * torch.linspace(-1, 1, 16)).sum().backward()
    assert got.weight.grad is not None
    assert got.weight.grad.dtype == torch.bfloat16
    assert (got.weight.grad.float() - expected.weight.grad).norm() < 0.02 * expected.weight.grad.norm()
    assert (inputs[1].grad.float() - inputs[0].grad).norm() < 0.02 * inputs[0].grad.norm()
