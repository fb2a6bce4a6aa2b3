"""What the kernels know of routing: a flat list of (token, weight) pairs, grouped by expert."""

from typing import NamedTuple

import torch
from torch import Tensor


class Assignments(NamedTuple):
    """S assignments of tokens to experts, sorted by expert; within an expert by token.

    token_S: int64, the token of each assignment (a token may occur any number of times, also never).
    weight_S: the factor on the expert's output; differentiable.
    expert_offsets: E + 1 Python ints; expert e owns assignments expert_offsets[e] : expert_offsets[e + 1].
    slot_S: int64, the same assignments ordered by token: a permutation of 0 … S - 1.
    token_offsets_T: int64, where each token's run begins in slot_S (as `embedding_bag` takes it).
    """

    token_S: Tensor
    weight_S: Tensor
    expert_offsets: tuple[int, ...]
    slot_S: Tensor
    token_offsets_T: Tensor


def assign(token_S: Tensor, expert_S: Tensor, weight_S: Tensor, *, tokens: int, experts: int) -> Assignments:
    """Sort any list of assignments into the form that the kernels take.

    token_S, expert_S: int64 ids, in any order; weight_S: weights, gradients flow back to them.
    tokens, experts: how many there are, so that those without an assignment count too.
    """
    by_token = torch.sort(token_S, stable=True).indices
    order_S = by_token[torch.sort(expert_S[by_token], stable=True).indices]
    slot_S = torch.empty_like(order_S)
    position_S = torch.empty_like(order_S)
    position_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
    slot_S = position_S[by_token]
    token_counts_T = torch.bincount(token_S, minlength=tokens)
    offsets = [0, *torch.bincount(expert_S, minlength=experts).cumsum(0).tolist()]
    return Assignments(
        token_S[order_S], weight_S[order_S], tuple(offsets), slot_S, token_counts_T.cumsum(0) - token_counts_T
    )
