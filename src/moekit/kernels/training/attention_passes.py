"""Causal attention of whole sequences with rotary positions, forward and backward, from one matrix of q, k and v.

Legend: B batch, T tokens, H query heads, G key-value heads, C head width, N = (H + 2 G) C.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.kernels.training.compiled import training

Angles = tuple[Tensor, Tensor]
"""cos_TC and sin_TC, fp32, the first half of each row of sines negated."""

_ALL_POSITIONS = 2**40


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What attention computes of the rows of queries, keys and values.

    Attributes:
        heads: query heads, H.
        kv_heads: key-value heads, G; each serves H / G query heads.
        scale: the factor of the scores.
        window: how many positions a token sees at most, itself included; None for all.
    """

    heads: int
    kv_heads: int
    scale: float
    window: int | None = None


def attention_forward(shape: AttentionShape, projected_BTN: Tensor, angles: Angles | None) -> Tensor:
    """Compute mixed (B, T, H C) of heads whose queries and keys are rotated by the angles, if there are any."""
    batch, tokens, rows = projected_BTN.shape
    width = rows // (shape.heads + 2 * shape.kv_heads)
    mixed = projected_BTN.new_empty(batch, tokens, shape.heads * width)
    training().attention_forward(projected_BTN, *_arguments(shape, angles), mixed)
    return mixed


def attention_backward(
    shape: AttentionShape, projected_BTN: Tensor, angles: Angles | None, grad_mixed: Tensor
) -> Tensor:
    """Compute grad_projected_BTN from the gradient of what `attention_forward` gave."""
    grad_projected_BTN = torch.empty_like(projected_BTN)
    training().attention_backward(projected_BTN, *_arguments(shape, angles), grad_mixed, grad_projected_BTN)
    return grad_projected_BTN


def _arguments(
    shape: AttentionShape, angles: Angles | None
) -> tuple[int, int, Tensor | None, Tensor | None, float, int]:
    cos_TC, sin_TC = angles or (None, None)
    return shape.heads, shape.kv_heads, cos_TC, sin_TC, shape.scale, shape.window or _ALL_POSITIONS
