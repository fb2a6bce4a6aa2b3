"""Routers in training: the products in fp32 from x in bf16 or fp32, and the choice with its sums, in a pass each.

Legend: T tokens, D model width, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moekit.kernels.training.compiled import training


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Compute x W^T, (T, E), in fp32: no number of a bf16 x is rounded on the way, and none is copied."""
    logits_TE = torch.empty(x_TD.shape[0], weight_ED.shape[0])
    training().router_logits(x_TD, weight_ED, logits_TE)
    return logits_TE


def router_grad_x(grad_logits_TE: Tensor, weight_ED: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute grad_x_TD in fp32, rounded once to `dtype`."""
    grad_x_TD = torch.empty(grad_logits_TE.shape[0], weight_ED.shape[1], dtype=dtype)
    training().router_grad_x(grad_logits_TE, weight_ED, grad_x_TD)
    return grad_x_TD


def router_grad_weight(grad_logits_TE: Tensor, x_TD: Tensor) -> Tensor:
    """Compute grad_weight_ED in fp32."""
    grad_weight_ED = torch.empty(grad_logits_TE.shape[1], x_TD.shape[1])
    training().router_grad_weight(grad_logits_TE, x_TD, grad_weight_ED)
    return grad_weight_ED


class ChoiceRule(NamedTuple):
    """How K experts are chosen and weighed.

    The scores are the softmax of the logits, and the highest are chosen; or their sigmoids, and the highest of score +
    bias are. Of equal ones the expert with the lower id is chosen; NaN is above all.

    Attributes:
        top_k: K.
        sigmoid: scores are sigmoids.
        renormalize: a weight is its score divided by (the sum of the K + epsilon); else it is its score.
        epsilon: as said.
        scale: what weights are multiplied by in the end.
    """

    top_k: int
    sigmoid: bool = False
    renormalize: bool = False
    epsilon: float = 0.0
    scale: float = 1.0


class Choice(NamedTuple):
    """What a router found out about T tokens; padding is in no sum.

    Attributes:
        expert_TK: int64 ids, the highest first; -1 at padding.
        weight_TK: the weights, 0 at padding.
        score_TE: the scores.
        log_sum_T: logsumexp(logits), where it was asked for.
        score_sums_E: the sums of the scores.
        chosen_E: int64, how many tokens chose each expert.
        tokens: how many tokens are real.
        top_scores: the sum of their highest scores.
        logit_squares: the sum of their squared logits.
        log_sum_squares: the sum of the squares of log_sum_T.
    """

    expert_TK: Tensor
    weight_TK: Tensor
    score_TE: Tensor
    log_sum_T: Tensor | None
    score_sums_E: Tensor
    chosen_E: Tensor
    tokens: int
    top_scores: float
    logit_squares: float
    log_sum_squares: float


def router_choose(
    rule: ChoiceRule,
    logits_TE: Tensor,
    bias_E: Tensor | None,
    real_T: Tensor | None,
    decided_TK: Tensor | None,
    *,
    with_log_sum: bool,
) -> Choice:
    """Choose each token's experts.

    Args:
        rule: how.
        logits_TE: fp32.
        bias_E: fp32, what is added to sigmoids before they are compared.
        real_T: bool, False at padding; None where there is none.
        decided_TK: int64 ids that were chosen before and stay; negative where none was.
        with_log_sum: fill `log_sum_T` and `log_sum_squares`.
    """
    tokens, experts = logits_TE.shape
    expert_TK = decided_TK if decided_TK is not None else torch.empty(tokens, rule.top_k, dtype=torch.int64)
    weight_TK = torch.empty(tokens, rule.top_k)
    score_TE = torch.empty(tokens, experts)
    log_sum_T = torch.empty(tokens) if with_log_sum else None
    score_sums_E, chosen_E = torch.empty(experts), torch.empty(experts, dtype=torch.int64)
    figures = training().router_choose(
        *(*rule, decided_TK is not None, logits_TE, bias_E, real_T),
        *(expert_TK, score_TE, weight_TK, log_sum_T, score_sums_E, chosen_E),
    )
    return Choice(expert_TK, weight_TK, score_TE, log_sum_T, score_sums_E, chosen_E, *figures)


def router_differentiate(
    rule: ChoiceRule,
    logits_TE: Tensor | None,
    real_T: Tensor | None,
    choice: tuple[Tensor, Tensor, Tensor | None],
    grad_weight_TK: Tensor | None,
    grad_scores_TE: Tensor | None,
    grad_sums_E: Tensor | None,
    grad_squares: float,
) -> Tensor:
    """Compute grad_logits_TE.

    Args:
        rule: how experts were chosen.
        logits_TE: needed where scores are sigmoids and there is a log_sum_T.
        real_T: bool, False at padding.
        choice: expert_TK, score_TE and log_sum_T of the Choice.
        grad_weight_TK: the gradient of the weights; None is 0, as it is of what follows.
        grad_scores_TE: that of the scores.
        grad_sums_E: that of their sums.
        grad_squares: that of `log_sum_squares`.
    """
    expert_TK, score_TE, log_sum_T = choice
    grad_logits_TE = torch.empty_like(score_TE)
    training().router_differentiate(
        *(*rule, logits_TE, real_T, expert_TK, score_TE, log_sum_T),
        *(grad_weight_TK, grad_scores_TE, grad_sums_E, grad_squares, grad_logits_TE),
    )
    return grad_logits_TE


def sort_choices(expert_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Sort choices by expert, of each those of earlier tokens first; negative ids are no choices.

    Returns:
        order_S: the places of the sorted choices in expert_TK flattened.
        token_S: their tokens.
        slot_S: the places in order_S of the choices as they came.
        token_offsets_T: where each token's begin in slot_S.
        offsets: E + 1 ints, where each expert's begin in order_S, and the end.
    """
    size = expert_TK.numel()
    order_S, token_S, slot_S = torch.empty(3, size, dtype=torch.int64).unbind()
    token_offsets_T = torch.empty(expert_TK.shape[0], dtype=torch.int64)
    offsets = training().sort_choices(expert_TK, experts, order_S, token_S, slot_S, token_offsets_T)
    if (taken := offsets[-1]) < size:
        order_S, token_S, slot_S = order_S[:taken], token_S[:taken], slot_S[:taken]
    return order_S, token_S, slot_S, token_offsets_T, tuple(offsets)
