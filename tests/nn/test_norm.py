"""Norms against torch's own and their definition, and their gradients."""

import pytest
import torch
from tests.kernels.instruction_sets import using_instruction_set

from moekit.kernels.native.module import native
from moekit.kernels.training.compiled import trains
from moekit.nn import LayerNorm, Norm, RMSNorm


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


def composed(norm: Norm, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum and its norm in fp64, written out, from a norm in fp32."""
    total = x.double() + added.double()
    if isinstance(norm, LayerNorm):
        normed = (total - total.mean(-1, keepdim=True)) / (total.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return total, normed * norm.weight.double() + norm.bias.double()
    assert isinstance(norm, RMSNorm)
    return total, total / (total.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.factor_D.double()


@pytest.mark.processor
@pytest.mark.parametrize("kind", ["rms", "zero-centred", "layer"])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_compiled_passes_equal_the_definition(kind: str, dtypes: tuple[str, str], autocast: bool) -> None:
    """The sum, its norm and every gradient, on widths that are whole vectors and others, more rows than a block has."""
    of_stream, of_added = (getattr(torch, name) for name in dtypes)
    for name in native().instruction_sets() if trains() else []:
        for rows, width in ((1, 1), (3, 16), (150, 45), (70, 128)):
            norm = LayerNorm(width, 1e-5) if kind == "layer" else RMSNorm(width, 1e-5, zero_centered=kind != "rms")
            for parameter in norm.parameters():
                torch.nn.init.normal_(parameter)
            x = (1 + torch.randn(rows, width)).to(of_stream).requires_grad_()
            added = torch.randn(rows, width).to(of_added).requires_grad_()
            inputs = [x, added, *norm.parameters()]
            with using_instruction_set(name), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                got = norm(x, added)
                towards = [torch.randn(rows, width).to(y.dtype) for y in got]
                grads = torch.autograd.grad(got, inputs, towards)
                alone = norm(got[0].detach())
            assert got[0].grad_fn.name() == "_NativeNormBackward"
            assert [y.dtype for y in got] == [of_stream, torch.bfloat16 if autocast else of_stream]
            assert torch.equal(alone, got[1])
            expected = composed(norm, x, added)
            wanted = torch.autograd.grad(expected, inputs, [grad.double() for grad in towards])
            lossy = torch.bfloat16 in (of_stream, of_added) or autocast
            for found, right in zip((*got, *grads), (*expected, *wanted), strict=True):
                limit = 1e-2 if lossy else 2e-5
                scale = max(1.0, float(right.detach().norm()))
                assert (found.double() - right).norm() <= limit * scale, (name, rows, width, found.shape)


@pytest.mark.skipif(not trains(), reason="there are no compiled kernels")
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    norm = RMSNorm(96, 1e-5)
    x, towards = torch.randn(3000, 96).requires_grad_(), torch.randn(3000, 96)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = norm(x)
        found.append([y, *torch.autograd.grad(y, [x, norm.weight], towards)])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_sum_whose_norm_nobody_reads_has_its_gradient() -> None:
    norm = RMSNorm(16, 1e-5)
    x, added = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16).bfloat16().requires_grad_()
    total, _ = norm(x, added)
    grad_x, grad_added = torch.autograd.grad(total.sum(), [x, added])
    assert torch.equal(grad_x, torch.ones(3, 16))
    assert torch.equal(grad_added, torch.ones(3, 16).bfloat16())


def test_only_once() -> None:
    x = torch.randn(3, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(RMSNorm(16, 1e-5)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|does not require grad"):
        torch.autograd.grad(grad.sum(), x)
