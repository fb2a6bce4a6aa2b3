"""What every backend of the experts takes and gives: one protocol, which each of them implements.

Legend: T tokens, D model width, F expert width, G = 2 F (gate, then up) or F (up alone), E experts.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moekit.kernels.activation import SILU_GATED, Activation
from moekit.kernels.assignments import Assignments


class ExpertWeights(NamedTuple):
    """The weights of a layer's experts, in the layout of transformers' stacked experts.

    gate_up_EGD: the gate's F rows over those of the up projection; the up projection alone where experts are not gated.
    down_EDF: the down projection.
    gate_up_bias_EG, down_bias_ED: biases of the two; each is there or not, whatever the other is.
    """

    gate_up_EGD: Tensor
    down_EDF: Tensor
    gate_up_bias_EG: Tensor | None = None
    down_bias_ED: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "ExpertWeights":
        """Convert every tensor to `dtype`."""
        gate_up_EGD, down_EDF, *biases = self
        converted_biases = (None if bias is None else bias.to(dtype) for bias in biases)
        return ExpertWeights(gate_up_EGD.to(dtype), down_EDF.to(dtype), *converted_biases)


class ExpertsKernel(Protocol):
    """A function that computes the experts of a layer. All of them agree to rounding."""

    def __call__(
        self, x_TD: Tensor, assignments: Assignments, weights: ExpertWeights, activation: Activation = SILU_GATED
    ) -> Tensor:
        """Apply the experts and give y_TD: for each token, the weighted sum of what its experts compute.

        An expert computes down(act(gate(x)) * up(x)), biases included: the assignment's weight multiplies the bias of
        the down projection too. Tokens without an assignment get zeros. The result is differentiable with respect to
        x_TD, assignments.weight_S and every tensor of `weights`.
        """
