"""Causal attention of whole sequences as one node of autograd's graph, from rows of queries, keys and values.

B batch, T tokens, N = (H + 2 G) C rows of H query heads and G key-value heads of width C.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.kernels.training.attention_passes import Angles, AttentionShape, attention_backward, attention_forward


def fused_attention(projected_BTN: Tensor, angles: Angles | None, shape: AttentionShape) -> Tensor:
    """Compute the mixed values (B, T, H C); the result can be differentiated once.

    It keeps projected_BTN alone for the gradient.

    Args:
        projected_BTN: contiguous, fp32 or bf16: of each token the queries, then the keys, then the values.
        angles: cosines and sines of the positions, by which queries and keys are rotated; None for no rotation.
        shape: the heads, their scale and window.
    """
    mixed: Tensor = _FusedAttention.apply(projected_BTN, angles, shape)  # type: ignore[no-untyped-call]
    return mixed


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected_BTN: Tensor, angles: Angles | None, shape: AttentionShape) -> Tensor:
        ctx.save_for_backward(projected_BTN)
        ctx.angles, ctx.shape = angles, shape
        return attention_forward(shape, projected_BTN, angles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mixed: Tensor) -> tuple[Tensor, None, None]:
        (projected_BTN,) = ctx.saved_tensors
        return attention_backward(ctx.shape, projected_BTN, ctx.angles, grad_mixed.contiguous()), None, None
