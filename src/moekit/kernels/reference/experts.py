"""The obvious loop over experts, left to autograd: slow, readable, and what every other backend is held to."""

import torch.nn.functional as F
from torch import Tensor

from moekit.kernels.activation import SILU_GATED, Activation, plain_activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.experts_kernel import ExpertWeights


def experts(
    x_TD: Tensor, assignments: Assignments, weights: ExpertWeights, activation: Activation = SILU_GATED
) -> Tensor:
    """Compute an `ExpertsKernel`'s y_TD, one expert after another."""
    gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED = weights
    y_TD = x_TD.new_zeros(x_TD.shape)
    for expert in range(len(down_EDF)):
        begin, end = assignments.expert_offsets[expert : expert + 2]
        token_S = assignments.token_S[begin:end]
        gate_up_bias_G = None if gate_up_bias_EG is None else gate_up_bias_EG[expert]
        down_bias_D = None if down_bias_ED is None else down_bias_ED[expert]
        hidden_SF = plain_activation(F.linear(x_TD[token_S], gate_up_EGD[expert], gate_up_bias_G), activation)
        y_SD = F.linear(hidden_SF, down_EDF[expert], down_bias_D)
        weighted_SD = assignments.weight_S[begin:end, None].to(y_SD.dtype) * y_SD
        y_TD = y_TD.index_add(0, token_S, weighted_SD.to(y_TD.dtype))
    return y_TD
