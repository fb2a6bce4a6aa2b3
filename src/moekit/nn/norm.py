"""Root-mean-square and layer normalisation, with the residual addition before them and backward passes of their own.

T tokens (all leading dimensions), D model width.
"""

from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moekit.config import NormConfig
from moekit.kernels.training.norm_passes import NormMemory, NormWeights, norm_backward, norm_forward, norm_takes


class Norm(nn.Module):
    """Normalises x_TD, or the residual stream after something is added to it; at least fp32 inside.

    The result has autocast's dtype where autocast is on, since matrix products read it, else that of x. It can be
    differentiated once.
    """

    eps: float

    @overload
    def __call__(self, x_TD: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x_TD: Tensor, added_TD: Tensor) -> tuple[Tensor, Tensor]: ...
    def __call__(self, x_TD: Tensor, added_TD: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the norm of x_TD, or x_TD + added_TD and the norm of that, for any leading shape."""
        return super().__call__(x_TD, added_TD)  # type: ignore[no-any-return]

    def forward(self, x_TD: Tensor, added_TD: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """See `__call__`."""
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        weights = self._weights()
        if norm_takes(weights, x_TD, added_TD, dtype):
            arguments = (added_TD, weights.weight_D, weights.bias_D, weights.offset, self.eps, dtype)
            sum_TD, y_TD = _NativeNorm.apply(x_TD, *arguments)  # type: ignore[no-untyped-call]
        else:
            sum_TD = x_TD if added_TD is None else x_TD + added_TD
            y_TD = self._composed(sum_TD, dtype)
        return y_TD if added_TD is None else (sum_TD, y_TD)

    def _weights(self) -> NormWeights:
        raise NotImplementedError

    def _composed(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute the norm with torch's operations."""
        raise NotImplementedError


class RMSNorm(Norm):
    """x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich, arXiv 1910.07467, eq. 4).

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

    def _weights(self) -> NormWeights:
        return NormWeights(weight_D=self.weight, offset=1.0 if self.zero_centered else 0.0)

    def _composed(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        return _RMSNorm.apply(x_TD, self.factor_D, self.eps, dtype)  # type: ignore[no-untyped-call, no-any-return]


class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) · weight + bias (Ba et al., arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def _weights(self) -> NormWeights:
        return NormWeights(weight_D=self.weight, bias_D=self.bias)

    def _composed(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        return nn.functional.layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.eps).to(dtype)


class _NativeNorm(torch.autograd.Function):
    """The residual addition and the norm as one node of autograd's graph, in compiled passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        added_TD: Tensor | None,
        weight_D: Tensor,
        bias_D: Tensor | None,
        offset: float,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, Tensor]:
        weights = NormWeights(weight_D=weight_D, bias_D=bias_D, offset=offset)
        sum_TD, y_TD, memory = norm_forward(weights, x_TD, added_TD, eps, dtype)
        ctx.save_for_backward(sum_TD, weight_D, bias_D, memory.mean_T, memory.scale_T)
        ctx.offset, ctx.added = offset, None if added_TD is None else added_TD.dtype
        ctx.set_materialize_grads(False)
        return None if added_TD is None else sum_TD, y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum_TD: Tensor | None, grad_y_TD: Tensor | None) -> tuple[Tensor | None, ...]:
        sum_TD, weight_D, bias_D, mean_T, scale_T = ctx.saved_tensors
        if grad_y_TD is None:  # nobody read the norm
            grad_added_TD = None if grad_sum_TD is None or ctx.added is None else grad_sum_TD.to(ctx.added)
            return grad_sum_TD, grad_added_TD, None, None, None, None, None
        weights = NormWeights(weight_D=weight_D, bias_D=bias_D, offset=ctx.offset)
        grads = norm_backward(
            weights,
            sum_TD,
            NormMemory(mean_T=mean_T, scale_T=scale_T),
            grad_y_TD.contiguous(),
            None if grad_sum_TD is None else grad_sum_TD.contiguous(),
            ctx.added,
        )
        return *grads, None, None, None


class _RMSNorm(torch.autograd.Function):
    """The RMS norm as one node of autograd's graph.

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


def new_norm(config: NormConfig, width: int) -> Norm:
    """Build an RMSNorm, or a LayerNorm with a bias."""
    if config.kind == "rms":
        return RMSNorm(width, config.eps, zero_centered=config.zero_centered)
    return LayerNorm(width, config.eps)
