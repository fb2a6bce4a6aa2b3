"""RMS and layer normalisation after a residual addition: one pass forward, one backward.

Legend: T tokens (all leading dimensions), D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.kernels.training.compiled import takes_floats, training


@dataclass(frozen=True, kw_only=True)
class NormWeights:
    """What a norm multiplies by and adds, fp32: normed * (offset + weight_D) + bias_D; no bias for an RMS norm."""

    weight_D: Tensor
    bias_D: Tensor | None = None
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NormMemory:
    """What `norm_forward` keeps for the gradient beside the sum that was normed: 1 / deviation, and a layer's mean."""

    mean_T: Tensor | None
    scale_T: Tensor


def norm_takes(norm: NormWeights, x_TD: Tensor, added_TD: Tensor | None, dtype: torch.dtype) -> bool:
    """Tell whether these functions compute that: what is added is of x's type, or bf16 added to fp32."""
    weights = [norm.weight_D] if norm.bias_D is None else [norm.weight_D, norm.bias_D]
    if any(weight.dtype != torch.float32 for weight in weights) or dtype not in (torch.float32, torch.bfloat16):
        return False
    if added_TD is None:
        return takes_floats(x_TD, *weights)
    added_fits = added_TD.dtype == x_TD.dtype or x_TD.dtype == torch.float32
    return added_fits and added_TD.shape == x_TD.shape and takes_floats(x_TD, added_TD, *weights)


def norm_forward(
    norm: NormWeights, x_TD: Tensor, added_TD: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, NormMemory]:
    """Compute x + added (x itself where nothing is added), the norm of it in `dtype`, and what the gradient needs."""
    sum_TD = None if added_TD is None else torch.empty_like(x_TD)
    y_TD = x_TD.new_empty(x_TD.shape, dtype=dtype)
    scale_T = x_TD.new_empty(x_TD.numel() // x_TD.shape[-1], dtype=torch.float32)
    mean_T = None if norm.bias_D is None else torch.empty_like(scale_T)
    training().norm_forward(x_TD, added_TD, sum_TD, norm.weight_D, norm.bias_D, norm.offset, eps, y_TD, mean_T, scale_T)
    return x_TD if sum_TD is None else sum_TD, y_TD, NormMemory(mean_T=mean_T, scale_T=scale_T)


def norm_backward(
    norm: NormWeights,
    sum_TD: Tensor,
    memory: NormMemory,
    grad_y_TD: Tensor,
    grad_sum_TD: Tensor | None,
    added: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Compute the gradients of x, of what was added (in its dtype; None where nothing was), of the weight and the bias.

    grad_sum_TD is that of the sum where it is used beside its norm. What was added has the gradient of x where the
    dtypes are equal.
    """
    grad_x_TD = torch.empty_like(sum_TD)
    same = added == sum_TD.dtype
    grad_added_TD = None if added is None or same else torch.empty_like(sum_TD, dtype=added)
    grad_weight_D = torch.empty_like(norm.weight_D)
    grad_bias_D = None if norm.bias_D is None else torch.empty_like(norm.bias_D)
    training().norm_backward(
        sum_TD, memory.mean_T, memory.scale_T, norm.weight_D, norm.bias_D, norm.offset, grad_y_TD, grad_sum_TD,
        grad_x_TD, grad_added_TD, grad_weight_D, grad_bias_D,
    )  # fmt: skip
    return grad_x_TD, grad_x_TD if same else grad_added_TD, grad_weight_D, grad_bias_D
