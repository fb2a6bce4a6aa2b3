"""The norm of all gradients, and AdamW with the average of the weights in one pass over memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from moekit.kernels.training.compiled import training


@dataclass(frozen=True, kw_only=True)
class AdamWParameter:
    """A parameter and what belongs to it, fp32 tensors of one size, and what this step does to it.

    Attributes:
        kept: the factor that weight decay leaves of the weight.
        rate: the learning rate over 1 - beta1^t.
        root_correction: sqrt(1 - beta2^t).
        average: the average of the weight, which moves towards it; None for none, for all parameters or no one.
    """

    weight: Tensor
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor
    kept: float
    rate: float
    root_correction: float
    average: Tensor | None


def norm_of(tensors: Sequence[Tensor]) -> float:
    """Compute the root of the sum of all squares of fp32 tensors, with the same bits on any number of threads."""
    return float(training().norm_of(list(tensors)))


def adamw_step(
    parameters: Sequence[AdamWParameter],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    gradient_scale: float,
    average_kept: float,
) -> None:
    """Take one step of AdamW in place (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2).

    With g = gradient_scale * gradient: first += (1 - beta1) (g - first); second = beta2 second + (1 - beta2) g²;
    weight = kept weight - rate first / (sqrt(second) / root_correction + eps); average = weight + average_kept (average
    - weight).
    """
    training().adamw_step(
        [one.weight for one in parameters],
        [one.gradient for one in parameters],
        [one.first_moment for one in parameters],
        [one.second_moment for one in parameters],
        [one.average for one in parameters if one.average is not None],
        [one.kept for one in parameters],
        [one.rate for one in parameters],
        [one.root_correction for one in parameters],
        beta1,
        beta2,
        eps,
        gradient_scale,
        average_kept,
    )
