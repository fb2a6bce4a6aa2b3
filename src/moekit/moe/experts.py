"""The experts of one layer: their weights, and the kernel that applies them."""

import torch
from torch import Tensor, nn

from moekit.config import MoEConfig
from moekit.kernels.activation import Activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.backends import Backend, experts_kernel
from moekit.kernels.experts_kernel import ExpertWeights


class Experts(nn.Module):
    """The E feed-forward networks of a layer, in the layout of transformers' stacked experts.

    Attributes:
        gate_up_EGD: the gate's F rows over those of the up projection (G = 2 F); the up projection alone (G = F) where
            experts are not gated.
        down_EDF: the down projection.
        gate_up_bias_EG: the biases of the gate and of the up projection; None where the configuration has none.
        down_bias_ED: the biases of the down projection, likewise.
        kernel: the function of the chosen backend; all backends agree to rounding.
    """

    def __init__(self, width: int, config: MoEConfig, backend: Backend = "fastest") -> None:
        super().__init__()
        experts, hidden = config.experts, config.expert_width
        self.activation = Activation(config.activation, config.gated)
        self.gate_up_EGD = nn.Parameter(torch.empty(experts, 2 * hidden if config.gated else hidden, width))
        self.down_EDF = nn.Parameter(torch.empty(experts, width, hidden))
        self.gate_up_bias_EG = nn.Parameter(torch.zeros(self.gate_up_EGD.shape[:2])) if config.bias else None
        self.down_bias_ED = nn.Parameter(torch.zeros(experts, width)) if config.bias else None
        self.kernel = experts_kernel(backend)

    def forward(self, x_TD: Tensor, assignments: Assignments) -> Tensor:
        """Compute y_TD: for each token the weighted sum of its experts' outputs; zeros where it has none."""
        weights = ExpertWeights(self.gate_up_EGD, self.down_EDF, self.gate_up_bias_EG, self.down_bias_ED)
        return self.kernel(x_TD, assignments, weights, self.activation)
