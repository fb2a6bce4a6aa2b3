"""From the experts that each token chose to the assignments that are computed: tokens without a choice, capacity.

T tokens, K choices per token, E experts, S assignments.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from moekit.kernels.assignments import (
    Assignments,
    assign,
    assign_top_k,
    inverse_permutation,
    sorts_natively,
    stable_argsort,
)

NO_EXPERT = -1
"""Stands where a token makes no choice. Any negative id does: -1 - e is expert e, meant but not chosen."""


def not_chosen(expert_T: Tensor) -> Tensor:
    """Turn ids into negative ones, which count as no choice and still say which expert was meant."""
    return -1 - expert_T


def chosen_or_meant(expert_TK: Tensor) -> Tensor:
    """Turn ids into those of experts, also where an expert was meant but not chosen."""
    return torch.where(expert_TK < 0, -1 - expert_TK, expert_TK)


def expert_capacity(tokens: int, *, per_token: int, experts: int, factor: float) -> int:
    """Compute ceil(K · T / E · factor), the most of `tokens` that an expert takes, as Megatron-LM does.

    At K = 1 this is the Switch Transformer's capacity too.
    """
    # Rounded first: 1.1 · 10 is 11.000000000000002 in floating point, and that is no twelfth place.
    return math.ceil(round(per_token * tokens / experts * factor, 9))


def dispatch(
    expert_TK: Tensor,
    weight_TK: Tensor,
    *,
    experts: int,
    capacity: int | None,
    queue: Literal["tokens", "choices"],
) -> Assignments:
    """Make the assignments of `expert_TK`, of which each expert takes the first `capacity`; drop the rest.

    Args:
        expert_TK: int64 ids of experts, negative where nothing was chosen.
        weight_TK: weights; gradients flow back to them.
        experts: the number of experts.
        capacity: the most tokens an expert takes; None for all.
        queue: `tokens` lines up all choices of a token before those of the next (first come, first served); `choices`
            all first choices before all second ones (GShard, arXiv 2006.16668, algorithm 1).
    """
    if capacity is None and (sorts_natively(expert_TK) or not (expert_TK < 0).any()):
        return assign_top_k(expert_TK, weight_TK, experts=experts)
    tokens, per_token = expert_TK.shape
    token_TK = torch.arange(tokens, device=expert_TK.device)[:, None].expand(tokens, per_token)
    if queue == "choices":
        expert_TK, weight_TK, token_TK = expert_TK.t(), weight_TK.t(), token_TK.t()
    expert_S, weight_S, token_S = expert_TK.reshape(-1), weight_TK.reshape(-1), token_TK.reshape(-1)
    taken_S = (expert_S >= 0).nonzero().squeeze(1)
    if capacity is not None:
        taken_S = taken_S[_place_in_queue(expert_S[taken_S], experts) < capacity]
    return assign(token_S[taken_S], expert_S[taken_S], weight_S[taken_S], tokens=tokens, experts=experts)


def _place_in_queue(expert_S: Tensor, experts: int) -> Tensor:
    """Count for each choice how many before it are for the same expert: an exclusive cumulative sum per expert."""
    counts_E = torch.bincount(expert_S, minlength=experts)
    first_E = counts_E.cumsum(0) - counts_E
    return inverse_permutation(stable_argsort(expert_S, below=experts)) - first_E[expert_S]
