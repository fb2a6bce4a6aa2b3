"""Experts as two grouped matrix products, for GPUs: one kernel each for all experts, and no loop.

On a CPU torch computes a grouped product as a loop over experts, which `experts` does better.

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F (gate, then up) or F, E experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.kernels.activation import SILU_GATED, Activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.experts_kernel import ExpertWeights

_ALIGNED = 8  # numbers of bfloat16 in 16 bytes, of which grouped products want rows to be made


def grouped_experts(
    x_TD: Tensor, assignments: Assignments, weights: ExpertWeights, activation: Activation = SILU_GATED
) -> Tensor:
    """Compute an `ExpertsKernel`'s y_TD, all experts in two grouped products.

    All tensors have one dtype, on a GPU bfloat16. D and F are multiples of 8, since grouped products take rows of 16
    bytes.
    """
    gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED = weights
    token_S, weight_S, offsets, _, _ = assignments
    ends_E = torch.tensor(offsets[1:], dtype=torch.int32, device=x_TD.device)
    gate_up_SG = _products(x_TD[token_S], gate_up_EGD, gate_up_bias_EG, ends_E)
    y_SD = _products(activation(gate_up_SG), down_EDF, down_bias_ED, ends_E)
    weighted_SD = y_SD * weight_S[:, None].to(y_SD.dtype)
    return torch.zeros_like(x_TD).index_add(0, token_S, weighted_SD)


def _products(rows_SA: Tensor, weights_EBA: Tensor, bias_EB: Tensor | None, ends_E: Tensor) -> Tensor:
    """Multiply each expert's rows with its matrix and add its bias, where there is one: (S, B).

    A row's bias is a product too, with a one and seven zeros, because a grouped product's gradient sums each expert's
    rows in fp32; that of a gathered bias would be summed in bfloat16.
    """
    product_SB = F.grouped_mm(rows_SA, weights_EBA.transpose(1, 2), offs=ends_E)
    if bias_EB is None:
        return product_SB
    one_S8 = F.pad(rows_SA.new_ones(rows_SA.shape[0], 1), (0, _ALIGNED - 1))
    bias_E8B = F.pad(bias_EB[:, None], (0, 0, 0, _ALIGNED - 1))
    return product_SB + F.grouped_mm(one_S8, bias_E8B, offs=ends_E)


def fits_grouped(x_TD: Tensor, down_EDF: Tensor) -> bool:
    """Tell whether `grouped_experts` takes these tensors on this device."""
    _, width, hidden = down_EDF.shape
    return (
        x_TD.is_cuda
        and x_TD.dtype == torch.bfloat16
        and width % _ALIGNED == hidden % _ALIGNED == 0
        and torch.cuda.get_device_capability(x_TD.device) >= (8, 0)
    )
