"""The softmax cross entropy of logits. S predictions, V vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.kernels.training.compiled import takes_floats
from moekit.kernels.training.token_loss_passes import token_loss_backward, token_loss_forward


def token_loss(logits_SV: Tensor, target_S: Tensor) -> Tensor:
    """Compute loss_S = -log softmax(logits)[target] in nats, at least fp32, of targets in int64.

    Raises:
        IndexError: where a target is no token.
    """
    if takes_floats(logits_SV) and target_S.is_cpu:
        loss_S: Tensor = _TokenLoss.apply(logits_SV, target_S.contiguous())  # type: ignore[no-untyped-call]
        return loss_S
    at_least = torch.promote_types(torch.float32, logits_SV.dtype)
    return F.cross_entropy(logits_SV.to(at_least), target_S, reduction="none")


class _TokenLoss(torch.autograd.Function):
    """The loss as one node of autograd's graph, which keeps the logits and a number a prediction."""

    @staticmethod
    def forward(ctx: Any, logits_SV: Tensor, target_S: Tensor) -> Tensor:
        loss_S, log_sum_S = token_loss_forward(logits_SV, target_S)
        ctx.save_for_backward(logits_SV, target_S, log_sum_S)
        return loss_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss_S: Tensor) -> tuple[Tensor, None]:
        logits_SV, target_S, log_sum_S = ctx.saved_tensors
        return token_loss_backward(logits_SV, target_S, log_sum_S, grad_loss_S.contiguous()), None
