"""The average of a model's weights over its training, which is measured instead of the latest weights."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

AVERAGE_TEXT = (
    "an average of the weights over the latest part of the training, a window that grows with it (power-function "
    "average, 10 % wide)"
)

# A window whose standard deviation is 10 % of the training so far: sqrt(g + 1) / ((g + 2) sqrt(g + 3)) = 0.10.
_GAMMA = 6.94


class WeightAverage(AveragedModel):
    """A copy of a model, in `.module`, whose weights are an average of the model's over its training.

    The window grows with the training, so that the average is after any number of steps what a run of that length would
    have given: no horizon enters (power-function EMA; Karras et al., arXiv 2312.02696, section 3.1). It takes the noise
    of the last steps out of what is measured, without a decay of the learning rate to nothing.

    Attributes:
        by_parameter: the average of each parameter of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, multi_avg_fn=_towards)
        self.requires_grad_(requires_grad=False)
        self.by_parameter = dict(zip(model.parameters(), self.module.parameters(), strict=True))
        self._copies = list(zip(self.module.buffers(), model.buffers(), strict=True))

    @property
    def share(self) -> float:
        """How far the next step moves the average towards the weights: 1 at the first."""
        return _share(int(self.n_averaged))

    def move(self, but_for: Collection[nn.Parameter] = ()) -> None:
        """Move the average towards the weights after a step, but for parameters whose average was moved by others."""
        left = {parameter: average for parameter, average in self.by_parameter.items() if parameter not in but_for}
        with torch.no_grad():
            if left:
                torch._foreach_lerp_(list(left.values()), list(left), self.share)
            for copy, buffer in self._copies:
                copy.copy_(buffer)
        self.n_averaged += 1


def new_average(model: nn.Module) -> WeightAverage:
    """Copy `model` for an average that `move` moves after each step."""
    return WeightAverage(model)


def _share(updates: int) -> float:
    """Compute 1 - beta, beta = (1 - 1/t)^(gamma + 1) at step t, which follows `updates` others."""
    return 1 - float((1 - 1 / (updates + 1)) ** (_GAMMA + 1))


def _towards(average: Any, current: Any, updates: Tensor | int) -> None:
    """Compute average += (1 - beta) (current - average)."""
    torch._foreach_lerp_(average, current, _share(int(updates)))
