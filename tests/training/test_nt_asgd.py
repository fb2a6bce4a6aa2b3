"""When averaging starts, and that what is averaged is the plain mean."""

import math

import pytest
import torch

from moekit.training.nt_asgd import NonMonotonicASGD, NonMonotonicTrigger


def when_fired(losses: list[float], patience: int) -> int | None:
    trigger = NonMonotonicTrigger(patience)
    return next((index for index, loss in enumerate(losses) if trigger.check(loss)), None)


def test_it_fires_when_a_loss_is_worse_than_the_best_of_those_long_ago() -> None:
    assert when_fired([5, 4, 3, 2, 1, 0.5], patience=2) is None
    # The 4 is worse than the best of [5, 3]; for the 3.2 before it only the 5 was old enough.
    assert when_fired([5, 3, 3.5, 3.2, 4], patience=2) == 4
    assert when_fired([5, 3, 3.5, 2.9, 2.8, 2.85], patience=2) is None
    # Never before there are more than `patience` losses.
    assert when_fired([1, 2, 3, 4, 5, 6], patience=5) is None
    assert when_fired([1, 2, 3, 4, 5, 6, 7], patience=5) == 6


def test_it_stays_fired() -> None:
    trigger = NonMonotonicTrigger(patience=1)
    assert [trigger.check(loss) for loss in (1, 2, 3, 0.1)] == [False, False, True, True]


def new(weight: torch.Tensor, patience: int = 1) -> NonMonotonicASGD:
    return NonMonotonicASGD([weight], learning_rate=0.1, patience=patience)


def take_step(optimizer: NonMonotonicASGD, weight: torch.Tensor) -> None:
    optimizer.zero_grad()
    (weight.square().sum() + weight.sin().sum()).backward()
    optimizer.step()


def test_the_average_is_the_mean_of_all_weights_since_the_trigger() -> None:
    weight = torch.linspace(-2, 3, 7, requires_grad=True)
    plain = weight.detach().clone().requires_grad_()
    optimizer, sgd = new(weight), torch.optim.SGD([plain], lr=0.1)
    seen = []
    for index, loss in enumerate([3.0, 4.0, 5.0]):
        take_step(optimizer, weight)
        assert optimizer.check(loss) == (index == 2)
    seen.append(weight.detach().clone())
    for _ in range(5):
        take_step(optimizer, weight)
        seen.append(weight.detach().clone())
    for _ in range(8):
        sgd.zero_grad()
        (plain.square().sum() + plain.sin().sum()).backward()
        sgd.step()
    latest = weight.detach().clone()
    # SGD itself went on as if nothing were averaged.
    torch.testing.assert_close(latest, plain.detach(), rtol=0, atol=0)
    with optimizer.averaged():
        torch.testing.assert_close(weight.detach(), torch.stack(seen).mean(0), rtol=1e-6, atol=1e-6)
        assert (weight.detach() - latest).abs().max() > 0.01
    torch.testing.assert_close(weight.detach(), latest, rtol=0, atol=0)


def test_without_a_trigger_there_is_no_average() -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = new(weight)
    take_step(optimizer, weight)
    assert not optimizer.check(1.0)
    before = weight.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("saved_at", [2, 5])
def test_it_goes_on_from_its_state(saved_at: int) -> None:
    weight = torch.linspace(-2, 3, 7, requires_grad=True)
    optimizer = new(weight)
    for index in range(8):
        if index == saved_at:
            copy = weight.detach().clone().requires_grad_()
            other = new(copy)
            other.load_state_dict(optimizer.state_dict())
        take_step(optimizer, weight)
        optimizer.check(math.fmod(index, 3))
    for index in range(saved_at, 8):
        take_step(other, copy)
        other.check(math.fmod(index, 3))
    assert optimizer.average is not None
    assert other.average is not None
    torch.testing.assert_close(other.average[0], optimizer.average[0], rtol=0, atol=0)
    torch.testing.assert_close(copy, weight, rtol=0, atol=0)
