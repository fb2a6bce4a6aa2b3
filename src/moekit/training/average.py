"""The average of a model's weights over its training, which is measured instead of the latest weights."""

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


def new_average(model: nn.Module) -> AveragedModel:
    """Copy `model`, in `.module`, for an average that `update_parameters(model)` moves after each step.

    The window grows with the training, so that the average is after any number of steps what a run of that length would
    have given: no horizon enters (power-function EMA; Karras et al., arXiv 2312.02696, section 3.1). It takes the noise
    of the last steps out of what is measured, without a decay of the learning rate to nothing.
    """
    return AveragedModel(model, multi_avg_fn=_towards).requires_grad_(requires_grad=False)


def _towards(average: Any, current: Any, updates: Tensor | int) -> None:
    """Compute average += (1 - beta) (current - average), beta = (1 - 1/t)^(gamma + 1) at step t."""
    beta = (1 - 1 / (int(updates) + 1)) ** (_GAMMA + 1)
    torch._foreach_lerp_(average, current, 1 - beta)
