"""The compiled optimiser step against torch's: norm, clipping, AdamW and the average of the weights."""

import copy
import math

import pytest
import torch
from tests.kernels.instruction_sets import using_instruction_set
from torch import nn

from moekit.kernels.native.module import native
from moekit.kernels.training.compiled import trains
from moekit.training.average import WeightAverage, new_average
from moekit.training.update import gradient_norm, update_weights

pytestmark = pytest.mark.processor

CLIP = 0.5


class Model(nn.Module):
    """Parameters of odd sizes, one of more than a piece, one that no batch gives a gradient, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [(1,), (7, 3), (130, 257)]
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(size)) for size in self.sizes)
        self.idle = nn.Parameter(torch.randn(5))
        self.register_buffer("bias", torch.zeros(3))

    def optimizer(self) -> torch.optim.AdamW:
        groups = [
            {"params": list(self.parts[1:]), "weight_decay": 0.3},
            {"params": [self.parts[0], self.idle], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=True)


def reference(model: Model, optimizer: torch.optim.AdamW, average: WeightAverage, rate: float) -> None:
    """What torch does, each thing by itself."""
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    average.update_parameters(model)


@pytest.mark.parametrize("size", [1e-3, 1.0], ids=["not clipped", "clipped"])
def test_steps_equal_torchs(size: float) -> None:
    for name in native().instruction_sets() if trains() else []:
        torch.manual_seed(0)
        model = Model()
        theirs = copy.deepcopy(model).double()
        optimizer, their_optimizer = model.optimizer(), theirs.optimizer()
        average, their_average = new_average(model), new_average(theirs)
        for step in range(4):
            model.bias.fill_(step)
            theirs.bias.fill_(step)
            for parameter, own in zip(model.parts, theirs.parts, strict=True):
                parameter.grad = size * torch.randn_like(parameter)
                own.grad = parameter.grad.double()
            with using_instruction_set(name):
                norm = gradient_norm(model.parameters())
                scale = min(1.0, CLIP / (norm + 1e-6))
                update_weights(optimizer, rate=0.1 / (1 + step), scale=scale, average=average)
            reference(theirs, their_optimizer, their_average, 0.1 / (1 + step))
        expected = math.sqrt(sum(float(own.grad.square().sum()) for own in theirs.parts))
        assert min(norm, CLIP) == pytest.approx(min(expected, CLIP), rel=1e-5)
        for mine, right in ((model, theirs), (average, their_average)):
            for key, found in mine.state_dict().items():
                torch.testing.assert_close(found.double(), right.state_dict()[key].double(), rtol=2e-5, atol=1e-6)
        for parameter, own in zip(model.parts, theirs.parts, strict=True):
            for key, found in optimizer.state[parameter].items():
                right = their_optimizer.state[own][key]
                torch.testing.assert_close(found.double(), right.double(), rtol=1e-5, atol=1e-9)
        assert model.idle not in optimizer.state


def test_the_first_average_is_the_weights() -> None:
    model = Model()
    average = new_average(model)
    for parameter in model.parts:
        parameter.grad = torch.randn_like(parameter)
    update_weights(model.optimizer(), rate=0.1, scale=1.0, average=average)
    for mine, other in zip(model.parameters(), average.module.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_torch_goes_on_from_a_compiled_step_and_back() -> None:
    """One state, whoever takes the step: a checkpoint is read on any machine."""
    model, other = Model(), Model()
    other.load_state_dict(model.state_dict())
    optimizer, others = model.optimizer(), other.optimizer()
    for step in range(4):
        for mine, own in zip(model.parts, other.parts, strict=True):
            mine.grad = torch.randn_like(mine)
            own.grad = mine.grad.clone()
        update_weights(optimizer, rate=0.1, scale=1.0)
        if step % 2:
            others.param_groups[0]["lr"] = others.param_groups[1]["lr"] = 0.1
            others.step()
        else:
            update_weights(others, rate=0.1, scale=1.0)
    for mine, own in zip(model.parts, other.parts, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-6)
        assert optimizer.state[mine]["step"] == others.state[own]["step"] == 4


@pytest.mark.skipif(not trains(), reason="there are no compiled kernels")
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.manual_seed(1)
        torch.set_num_threads(threads)
        model = nn.Linear(700, 900)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        found.append((gradient_norm(model.parameters()), model.weight))
        update_weights(torch.optim.AdamW(model.parameters()), rate=0.1, scale=0.5)
    torch.set_num_threads(before)
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_tells_what_is_not_finite(value: float) -> None:
    model = Model()
    for parameter in model.parts:
        parameter.grad = torch.zeros_like(parameter)
    model.parts[2].grad[100, 100] = value
    assert not math.isfinite(gradient_norm(model.parameters()))
