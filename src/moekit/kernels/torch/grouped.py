"""Experts as two grouped matrix products, for GPUs: one kernel each for all experts, and no loop.

On a CPU torch computes a grouped product as a loop over experts, which `experts` does better.

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F (gate, then up) or F, E experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.kernels.assignments import Assignments
from moekit.kernels.torch.activation import SILU_GATED, Activation


def grouped_experts(
    x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor, activation: Activation = SILU_GATED
) -> Tensor:
    """y_TD: for each token, the sum over its assignments of weight * down(act(gate(x)) * up(x)).

    All of one dtype, on a GPU bfloat16; D and F multiples of 8, since grouped products want rows of 16 bytes.
    """
    token_S, weight_S, offsets, _, _ = assignments
    ends_E = torch.tensor(offsets[1:], dtype=torch.int32, device=x_TD.device)
    gate_up_SG = F.grouped_mm(x_TD[token_S], gate_up_EGD.transpose(1, 2), offs=ends_E)
    y_SD = F.grouped_mm(activation(gate_up_SG), down_EDF.transpose(1, 2), offs=ends_E)
    weighted_SD = y_SD * weight_S[:, None].to(y_SD.dtype)
    return torch.zeros_like(x_TD).index_add(0, token_S, weighted_SD)


def fits_grouped(x_TD: Tensor, down_EDF: Tensor) -> bool:
    """Whether `grouped_experts` takes these on this device."""
    _, width, hidden = down_EDF.shape
    return (
        x_TD.is_cuda
        and x_TD.dtype == torch.bfloat16
        and width % 8 == hidden % 8 == 0
        and torch.cuda.get_device_capability(x_TD.device) >= (8, 0)
    )
