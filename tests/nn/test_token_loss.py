"""The cross entropy of logits against its definition in fp64, and its gradient."""

import math

import pytest
import torch
from tests.kernels.instruction_sets import using_instruction_set

from moekit.kernels.native.module import native
from moekit.kernels.training.compiled import trains
from moekit.nn import token_loss


@pytest.mark.processor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (5, 7), (70, 256), (3, 1003)])
def test_equals_the_definition(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(rows, vocabulary)).to(dtype).requires_grad_()
    target, towards = torch.randint(vocabulary, (rows,)), torch.rand(rows)
    exact = logits.detach().double().requires_grad_()
    expected = -exact.log_softmax(-1)[torch.arange(rows), target]
    (wanted,) = torch.autograd.grad(expected, exact, towards.double())
    for name in native().instruction_sets() if trains() else []:
        with using_instruction_set(name):
            got = token_loss(logits, target)
            (grad,) = torch.autograd.grad(got, logits, towards)
        assert got.grad_fn.name() == "_TokenLossBackward"
        assert got.dtype == torch.float32
        assert grad.dtype == dtype
        assert (got - expected).norm() <= 1e-6 * max(1.0, float(expected.detach().norm())), name
        assert (grad - wanted).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * max(0.1, float(wanted.norm()))


def test_other_types_are_torchs() -> None:
    logits, target = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda x: token_loss(x, target), logits)


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_that_is_no_token_is_refused(target: int) -> None:
    with pytest.raises(IndexError):
        token_loss(torch.randn(2, 5), torch.tensor([1, target]))


def test_what_is_not_finite_stays_so() -> None:
    logits = torch.tensor([[0.0, math.nan, 0.0], [0.0, math.inf, 0.0], [0.0, -math.inf, 0.0], [1e30, 0.0, -1e30]])
    loss = token_loss(logits, torch.tensor([0, 0, 0, 0]))
    assert loss[0].isnan()
    assert not loss[1].isfinite()
    assert float(loss[2]) == pytest.approx(math.log(2))
    assert float(loss[3]) == 0
