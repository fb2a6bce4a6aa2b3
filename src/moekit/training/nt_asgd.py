"""Non-monotonically triggered averaged SGD: plain SGD, until the validation loss says to average the weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class NonMonotonicTrigger:
    """Fires when a validation loss is worse than the best of those that are `patience` or more checks old.

    Some checks without progress are noise, and go by; more are the sign that SGD has stopped getting better (Merity et
    al., arXiv 1708.02182, section 3 and algorithm 1). The newest loss is held against all but the latest `patience`, as
    in salesforce/awd-lstm-lm; the algorithm's text compares with the latest themselves, which fires at almost any loss
    that is not a new best.
    """

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self.losses: list[float] = []
        self.fired = False

    def check(self, loss: float) -> bool:
        """Note the newest validation loss, and tell whether the trigger fires or has fired before."""
        old = self.losses[: max(0, len(self.losses) - self.patience)]
        self.fired = self.fired or (bool(old) and loss > min(old))
        self.losses.append(loss)
        return self.fired


class NonMonotonicASGD:
    """SGD with constant learning rate that also averages its weights, from the moment the trigger fires.

    The weights that are used and measured are then the mean of all weights since that moment; SGD itself goes on from
    the latest. After each validation the caller calls `check` with the loss (that of the average, where there is one).
    """

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float = 0.0, patience: int = 5
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = torch.optim.SGD(self.parameters, lr=learning_rate, weight_decay=weight_decay)
        self.trigger = NonMonotonicTrigger(patience)
        self.average: list[Tensor] | None = None
        self.averaged_steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one step of SGD; the average takes the new weights in."""
        self.optimizer.step()
        if self.average is not None:
            self.averaged_steps += 1
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 / self.averaged_steps)

    def check(self, loss: float) -> bool:
        """Note a validation loss, and tell whether weights are averaged from now on, or already."""
        if self.trigger.check(loss) and self.average is None:
            # The weights at the trigger are the first term of the mean (algorithm 1, line 14).
            self.average, self.averaged_steps = [p.detach().clone() for p in self.parameters], 1
        return self.trigger.fired

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters hold the average within the block, where there is one already."""
        if self.average is None:
            yield
            return
        latest = [p.detach().clone() for p in self.parameters]
        _assign(self.parameters, self.average)
        try:
            yield
        finally:
            _assign(self.parameters, latest)

    def state_dict(self) -> dict[str, Any]:
        """Collect all that `load_state_dict` needs to go on as if nothing had happened, the parameters excepted."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "losses": list(self.trigger.losses),
            "fired": self.trigger.fired,
            "average": None if self.average is None else [tensor.clone() for tensor in self.average],
            "averaged_steps": self.averaged_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from that state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.trigger.losses, self.trigger.fired = list(state["losses"]), state["fired"]
        self.average = None if state["average"] is None else [tensor.clone() for tensor in state["average"]]
        self.averaged_steps = state["averaged_steps"]


@torch.no_grad()
def _assign(targets: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
