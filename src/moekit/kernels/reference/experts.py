"""The obvious loop over experts, left to autograd: slow, readable, and what every other backend is held to."""

import torch.nn.functional as F
from torch import Tensor

from moekit.kernels.assignments import Assignments
from moekit.kernels.torch.activation import SILU_GATED, Activation, plain_activation


def experts(
    x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor, activation: Activation = SILU_GATED
) -> Tensor:
    """y_TD: for each token, the sum over its assignments of weight * down(act(gate(x)) * up(x)).

    gate_up_EGD: gate over up, G = 2 F rows per expert; up alone, G = F, where it is not gated. down_EDF.
    Tokens without an assignment get zeros.
    """
    y_TD = x_TD.new_zeros(x_TD.shape)
    for expert, (gate_up_GD, down_DF) in enumerate(zip(gate_up_EGD, down_EDF, strict=True)):
        begin, end = assignments.expert_offsets[expert : expert + 2]
        token_S = assignments.token_S[begin:end]
        y_SD = F.linear(plain_activation(F.linear(x_TD[token_S], gate_up_GD), activation), down_DF)
        weighted_SD = assignments.weight_S[begin:end, None].to(y_SD.dtype) * y_SD
        y_TD = y_TD.index_add(0, token_S, weighted_SD.to(y_TD.dtype))
    return y_TD
