"""The part of routing that kernels know: a flat list of (token, weight) pairs, grouped by expert.

Legend: S assignments, T tokens, K experts per token.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moekit.kernels.training.compiled import trains
from moekit.kernels.training.router_passes import sort_choices


class Assignments(NamedTuple):
    """S assignments of tokens to experts, sorted by expert; within an expert by token.

    Attributes:
        token_S: int64, the token of each assignment. A token may occur any number of times, also never.
        weight_S: the factor on the expert's output; differentiable.
        expert_offsets: E + 1 Python ints; expert e owns assignments expert_offsets[e] : expert_offsets[e + 1].
        slot_S: int64, the same assignments ordered by token: a permutation of 0 … S - 1.
        token_offsets_T: int64, where each token's run begins in slot_S, as `embedding_bag` takes it.
    """

    token_S: Tensor
    weight_S: Tensor
    expert_offsets: tuple[int, ...]
    slot_S: Tensor
    token_offsets_T: Tensor


def assign(token_S: Tensor, expert_S: Tensor, weight_S: Tensor, *, tokens: int, experts: int) -> Assignments:
    """Sort any list of assignments into the form that the kernels take.

    Args:
        token_S: int64 ids of tokens, in any order.
        expert_S: int64 ids of the experts they are assigned to.
        weight_S: weights; gradients flow back to them.
        tokens: the number of tokens, those without an assignment included.
        experts: the number of experts, those without an assignment included.
    """
    by_token_S = stable_argsort(token_S, below=tokens)
    order_S = by_token_S[stable_argsort(expert_S[by_token_S], below=experts)]
    token_counts_T = torch.bincount(token_S, minlength=tokens)
    return Assignments(
        token_S[order_S],
        _permute(weight_S, order_S, position_S := inverse_permutation(order_S)),
        _offsets(expert_S, experts),
        position_S[by_token_S],
        token_counts_T.cumsum(0) - token_counts_T,
    )


def assign_top_k(expert_TK: Tensor, weight_TK: Tensor, *, experts: int) -> Assignments:
    """Sort the K experts of each of T tokens, as `assign` does, without the steps that only other lists need.

    Args:
        expert_TK: int64 ids of experts; where `sorts_natively`, negative ones are no assignments.
        weight_TK: weights; gradients flow back to them.
        experts: the number of experts, those without an assignment included.
    """
    tokens, per_token = expert_TK.shape
    if sorts_natively(expert_TK):
        order_S, token_S, slot_S, token_offsets_T, offsets = sort_choices(expert_TK.contiguous(), experts)
        weight_N = weight_TK.reshape(-1)
        # Where some are none, what is sorted is no permutation of all.
        weight_S = _permute(weight_N, order_S, slot_S) if len(order_S) == len(weight_N) else weight_N[order_S]
        return Assignments(token_S, weight_S, offsets, slot_S, token_offsets_T)
    expert_S = expert_TK.reshape(-1)
    order_S = stable_argsort(expert_S, below=experts)
    slot_S = inverse_permutation(order_S)
    return Assignments(
        order_S.div(per_token, rounding_mode="floor") if per_token > 1 else order_S,
        _permute(weight_TK.reshape(-1), order_S, slot_S),
        _offsets(expert_S, experts),
        slot_S,
        torch.arange(0, tokens * per_token, per_token, device=order_S.device),
    )


def sorts_natively(expert_TK: Tensor) -> bool:
    """Tell whether `assign_top_k` sorts those ids by compiled code."""
    return trains() and type(expert_TK) is Tensor and expert_TK.is_cpu and expert_TK.dtype == torch.int64


class _Permute(torch.autograd.Function):
    """Compute weight_S[order_S] with a permutation as its gradient; that of indexing would add up what may coincide."""

    @staticmethod
    def forward(ctx: Any, weight_S: Tensor, order_S: Tensor, position_S: Tensor) -> Tensor:
        ctx.save_for_backward(order_S, position_S)
        return weight_S.index_select(0, order_S)

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None, None]:
        order_S, position_S = ctx.saved_tensors
        return _permute(grad_S, position_S, order_S), None, None


def _permute(weight_S: Tensor, order_S: Tensor, position_S: Tensor) -> Tensor:
    permuted_S: Tensor = _Permute.apply(weight_S, order_S, position_S)  # type: ignore[no-untyped-call]
    return permuted_S


def stable_argsort(id_S: Tensor, *, below: int) -> Tensor:
    """Find the order that sorts ids in 0 … below - 1 and leaves equal ones as they are."""
    if id_S.is_cpu and below <= 2**16:
        # numpy sorts integers of 8 and 16 bits by radix: ten times as fast as torch on 10,000 ids
        narrow_S = id_S.to(torch.uint8 if below <= 2**8 else torch.uint16).numpy()
        return torch.from_numpy(np.argsort(narrow_S, kind="stable"))
    return torch.sort(id_S, stable=True).indices


def inverse_permutation(order_S: Tensor) -> Tensor:
    """Find the permutation that undoes order_S."""
    arange_S = torch.arange(order_S.numel(), device=order_S.device)
    return torch.empty_like(order_S).scatter_(0, order_S, arange_S)


def _offsets(expert_S: Tensor, experts: int) -> tuple[int, ...]:
    return (0, *torch.bincount(expert_S, minlength=experts).cumsum(0).tolist())
