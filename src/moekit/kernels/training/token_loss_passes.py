"""The softmax cross entropy of logits: a pass forward, and one backward that computes the exponentials again.

Legend: S predictions, V vocabulary.
"""

import torch
from torch import Tensor

from moekit.kernels.training.compiled import training


def token_loss_forward(logits_SV: Tensor, target_S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute loss_S = -log softmax(logits)[target] in nats and log_sum_S of the exponentials, both fp32.

    Raises:
        IndexError: where a target (int64) is no token.
    """
    loss_S = logits_SV.new_empty(len(logits_SV), dtype=torch.float32)
    log_sum_S = torch.empty_like(loss_S)
    training().token_loss_forward(logits_SV, target_S, loss_S, log_sum_S)
    return loss_S, log_sum_S


def token_loss_backward(logits_SV: Tensor, target_S: Tensor, log_sum_S: Tensor, grad_loss_S: Tensor) -> Tensor:
    """Compute grad_logits_SV = (softmax(logits) - one at the target) * grad_loss, in the logits' dtype."""
    grad_logits_SV = torch.empty_like(logits_SV)
    training().token_loss_backward(logits_SV, target_S, log_sum_S, grad_loss_S, grad_logits_SV)
    return grad_logits_SV
