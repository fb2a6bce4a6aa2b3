"""The choice of the experts with the highest scores, its weights and sums, as one operation with a gradient of its own.

It is what the composition in `router.py` computes, in one pass over the logits instead of some twenty.
T tokens, E experts, K experts per token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.kernels.training.compiled import takes
from moekit.kernels.training.router_passes import Choice, ChoiceRule, router_choose, router_differentiate

__all__ = ["ChoiceRule", "ScoredChoice", "choose_scored", "fits"]


class ScoredChoice(NamedTuple):
    """What was chosen; weights, scores and the sums of scores and of squares can be differentiated.

    Attributes:
        expert_TK: int64 ids, the highest score first; -1 at padding.
        weight_TK: their weights.
        score_TE: all scores.
        score_sums_E: their sums over the tokens that are real, as all that follows.
        log_sum_squares: the sum of logsumexp(logits)², where it was asked for.
        chosen_E: how many tokens chose each expert.
        figures: the number of tokens, the sum of their highest scores, the sum of their squared logits.
    """

    expert_TK: Tensor
    weight_TK: Tensor
    score_TE: Tensor
    score_sums_E: Tensor
    log_sum_squares: Tensor
    chosen_E: Tensor
    figures: Tensor


def fits(logits_TE: Tensor) -> bool:
    """Tell whether `choose_scored` takes these logits: fp32 on a CPU, where moekit was compiled."""
    return takes(logits_TE, torch.float32)


def choose_scored(
    rule: ChoiceRule,
    logits_TE: Tensor,
    *,
    bias_E: Tensor | None = None,
    real_T: Tensor | None = None,
    decided_TK: Tensor | None = None,
    with_squares: bool = False,
) -> ScoredChoice:
    """Choose each token's K experts; it can be differentiated once.

    Args:
        rule: how they are chosen and weighed.
        logits_TE: logits that `fits` takes.
        bias_E: fp32, what is added to sigmoids before they are compared.
        real_T: bool, False at padding; None where there is none.
        decided_TK: what was chosen before and stays.
        with_squares: compute `log_sum_squares` too; else it is 0.
    """
    given = (bias_E, real_T, decided_TK, with_squares)
    return ScoredChoice(*_Choose.apply(logits_TE, rule, *given))  # type: ignore[no-untyped-call]


class _Choose(torch.autograd.Function):
    """The operation as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_TE: Tensor,
        rule: ChoiceRule,
        bias_E: Tensor | None,
        real_T: Tensor | None,
        decided_TK: Tensor | None,
        with_squares: bool,
    ) -> tuple[Tensor, ...]:
        found: Choice = router_choose(rule, logits_TE, bias_E, real_T, decided_TK, with_log_sum=with_squares)
        figures = torch.tensor([found.tokens, found.top_scores, found.logit_squares])
        if decided_TK is not None:
            found = found._replace(expert_TK=decided_TK.view_as(decided_TK))
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(found.expert_TK, found.chosen_E, figures)
        kept_logits_TE = logits_TE if rule.sigmoid and with_squares else None
        ctx.save_for_backward(kept_logits_TE, real_T, found.expert_TK, found.score_TE, found.log_sum_T)
        squares = torch.tensor(found.log_sum_squares)
        return found.expert_TK, found.weight_TK, found.score_TE, found.score_sums_E, squares, found.chosen_E, figures

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        _ids: None,
        grad_weight_TK: Tensor | None,
        grad_scores_TE: Tensor | None,
        grad_sums_E: Tensor | None,
        grad_squares: Tensor | None,
        *_others: None,
    ) -> tuple[Tensor | None, ...]:
        logits_TE, real_T, expert_TK, score_TE, log_sum_T = ctx.saved_tensors
        grad_logits_TE = router_differentiate(
            ctx.rule,
            logits_TE,
            real_T,
            (expert_TK, score_TE, log_sum_T),
            _dense(grad_weight_TK),
            _dense(grad_scores_TE),
            _dense(grad_sums_E),
            0.0 if grad_squares is None else float(grad_squares),
        )
        return grad_logits_TE, None, None, None, None, None


def _dense(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()
