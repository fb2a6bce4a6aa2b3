"""Root-mean-square normalisation, with a backward pass of its own.

T tokens (all leading dimensions), D model width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moekit.config import NormConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich, arXiv 1910.07467, eq. 4), computed in at least fp32.

    The result has autocast's dtype where autocast is on, since matrix products read it, else that of x.
    zero_centered: multiply by 1 + weight, computed in at least fp32, the weight starting at 0 (Gemma).
    """

    def __init__(self, width: int, eps: float, *, zero_centered: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if zero_centered else torch.ones(width))
        self.eps, self.zero_centered = eps, zero_centered

    @property
    def factor_D(self) -> Tensor:
        """The vector that the normed vector is multiplied by."""
        if not self.zero_centered:
            return self.weight
        return 1 + self.weight.to(torch.promote_types(torch.float32, self.weight.dtype))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Compute y_TD for any leading shape; the result can be differentiated once."""
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        y_TD: Tensor = _RMSNorm.apply(x_TD, self.factor_D, self.eps, dtype)  # type: ignore[no-untyped-call]
        return y_TD


class _RMSNorm(torch.autograd.Function):
    """The norm as one node of autograd's graph.

    It takes half the passes over memory of the composition of torch's own operations, which shows on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        at_least = torch.promote_types(torch.float32, x_TD.dtype)
        norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=at_least)
        scale_T1 = (norm_T1.square_() / x_TD.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x_TD, weight_D, scale_T1)
        y_TD: Tensor = (x_TD * scale_T1).mul_(weight_D).to(dtype)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_TD, weight_D, scale_T1 = ctx.saved_tensors
        normed_TD = x_TD * scale_T1
        # fp32 already, but for a model that is all bf16
        along_TD = (grad_TD * weight_D).to(normed_TD.dtype)
        mean_T1 = torch.linalg.vecdot(along_TD, normed_TD).unsqueeze_(-1).div_(x_TD.shape[-1])
        grad_x_TD = along_TD.addcmul_(normed_TD, mean_T1, value=-1).mul_(scale_T1)
        grad_weight_D = normed_TD.mul_(grad_TD).view(-1, x_TD.shape[-1]).sum(0)
        return grad_x_TD.to(x_TD.dtype), grad_weight_D.to(weight_D.dtype), None, None


def new_norm(config: NormConfig, width: int) -> nn.Module:
    """Build an RMSNorm, or a LayerNorm with a bias."""
    if config.kind == "rms":
        return RMSNorm(width, config.eps, zero_centered=config.zero_centered)
    return nn.LayerNorm(width, config.eps)
