"""Experts as a loop of matrix products over what each expert was assigned, with a backward pass of its own.

What makes it fast, beside the loop: the rows of a token are weighted and summed by `embedding_bag` in one pass over
memory; everything between belongs to one expert and stays in the cache; on a CPU several experts run at a time, each
on one core, and their numbers of rows are rounded to few sizes (see `padding`).

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F (gate, then up), E experts.
In the functions that serve one expert, S are its own assignments.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.kernels.assignments import Assignments
from moekit.kernels.torch.activation import activate, activate_backward, gated_activation
from moekit.kernels.torch.padding import padded
from moekit.kernels.torch.scratch import scratch
from moekit.kernels.torch.workers import workers

# Below this many multiplications, waking the workers costs more than they save.
_WORTH_WAKING_WORKERS = 20_000_000
# Nor do they pay if the busiest expert has more than this times a core's fair share of the rows.
_MOST_UNEVEN = 1.25


def experts(x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    """y_TD: for each token, the sum over its assignments of weight * down(silu(gate(x)) * up(x)).

    gate_up_EGD: gate over up, G = 2 F rows per expert; down_EDF. Tokens without an assignment get zeros.
    Under autocast the products are in autocast's dtype, as those of nn.Linear are, and so is y_TD.
    Differentiable, once, with respect to x_TD, assignments.weight_S, gate_up_EGD and down_EDF.
    """
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_TD, gate_up_EGD, down_EDF = x_TD.to(dtype), gate_up_EGD.to(dtype), down_EDF.to(dtype)
    assignments = padded(assignments, x_TD.device, x_TD.dtype)
    differentiable = (x_TD, assignments.weight_S, gate_up_EGD, down_EDF)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable):
        y_TD: Tensor = _Experts.apply(*differentiable, assignments)  # type: ignore[no-untyped-call]
        return y_TD
    return _without_gradients(x_TD, assignments, gate_up_EGD, down_EDF)


def _without_gradients(x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    token_S, weight_S, offsets, slot_S, token_offsets_T = assignments

    def one_expert(expert: int) -> None:
        own = slice(offsets[expert], offsets[expert + 1])
        gate_up_SG = torch.mm(x_TD.index_select(0, token_S[own]), gate_up_EGD[expert].t())
        torch.mm(gated_activation(gate_up_SG), down_EDF[expert].t(), out=y_SD[own])

    with scratch(token_S.numel(), x_TD) as y_SD:
        _each_expert(one_expert, offsets, gate_up_EGD)
        return _sum_by_token(y_SD, slot_S, token_offsets_T, weight_S.index_select(0, slot_S))


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_S: Tensor,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        assignments: Assignments,
    ) -> Tensor:
        token_S, _, offsets, slot_S, token_offsets_T = assignments
        size, width, hidden = token_S.numel(), x_TD.shape[1], down_EDF.shape[2]
        gate_up_SG = x_TD.new_empty(size, 2 * hidden)
        activated_SF, hidden_SF = x_TD.new_empty(size, hidden), x_TD.new_empty(size, hidden)
        keep_y = ctx.needs_input_grad[1] and _weigh_outputs(down_EDF)  # for the gradient of the weights
        own = _by_expert(offsets)
        token, gate_up, activated, hiddens = map(own, (token_S, gate_up_SG, activated_SF, hidden_SF))

        def one_expert(e: int) -> None:
            torch.mm(x_TD.index_select(0, token[e]), gate_up_EGD[e].t(), out=gate_up[e])
            activate(gate_up[e], activated[e], hiddens[e])
            torch.mm(hiddens[e], down_EDF[e].t(), out=y[e])

        with nullcontext(x_TD.new_empty(size, width)) if keep_y else scratch(size, x_TD) as y_SD:
            y = own(y_SD)
            _each_expert(one_expert, offsets, gate_up_EGD)
            y_TD = _sum_by_token(y_SD, slot_S, token_offsets_T, weight_S.index_select(0, slot_S))
        ctx.offsets = offsets
        ctx.save_for_backward(
            *(x_TD, weight_S, gate_up_EGD, down_EDF),
            *(token_S, slot_S, token_offsets_T),
            *(gate_up_SG, activated_SF, hidden_SF, y_SD if keep_y else None),
        )
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: under activation checkpointing, asking is what recomputes them
        x_TD, weight_S, gate_up_EGD, down_EDF, token_S, slot_S, token_offsets_T = saved[:7]
        gate_up_SG, activated_SF, hidden_SF, y_SD = saved[7:]
        needs_x, needs_weight, needs_gate_up, needs_down, _ = ctx.needs_input_grad
        needs_hidden = needs_x or needs_gate_up
        weigh_outputs = _weigh_outputs(down_EDF)

        grad_weight_S = x_TD.new_zeros(token_S.numel()) if needs_weight else None
        grad_gate_up_EGD = _zeros_where_idle(gate_up_EGD, ctx.offsets) if needs_gate_up else None
        grad_down_EDF = _zeros_where_idle(down_EDF, ctx.offsets) if needs_down else None

        own = _by_expert(ctx.offsets)
        token, gate_up, activated, hidden, y = map(own, (token_S, gate_up_SG, activated_SF, hidden_SF, y_SD))
        weight = own(weight_S.to(x_TD.dtype)[:, None])
        grad_weight = own(grad_weight_S)

        def one_expert(e: int) -> None:
            # The weights and their gradient take a pass each over rows that are either D or F wide: the narrower.
            grad_y_SD = grad_y_TD.index_select(0, token[e])
            hidden_SF = hidden[e]
            if weigh_outputs:
                if needs_weight:
                    torch.linalg.vecdot(grad_y_SD, y[e], out=grad_weight[e])
                grad_y_SD.mul_(weight[e])
            if needs_hidden or not weigh_outputs:
                grad_hidden_SF = torch.mm(grad_y_SD, down_EDF[e])
            if not weigh_outputs:
                if needs_weight:
                    torch.linalg.vecdot(grad_hidden_SF, hidden_SF, out=grad_weight[e])
                grad_hidden_SF.mul_(weight[e])
                hidden_SF = hidden_SF * weight[e]
            if grad_down_EDF is not None:
                torch.mm(grad_y_SD.t(), hidden_SF, out=grad_down_EDF[e])
            if not needs_hidden:
                return
            grad_gate_up_SG = activate_backward(grad_hidden_SF, gate_up[e], activated[e])
            if needs_x:
                torch.mm(grad_gate_up_SG, gate_up_EGD[e], out=grad_x[e])
            if grad_gate_up_EGD is not None:
                # gathered again rather than kept: as fast, and S rows less to hold
                torch.mm(grad_gate_up_SG.t(), x_TD.index_select(0, token[e]), out=grad_gate_up_EGD[e])

        with scratch(token_S.numel() if needs_x else 0, x_TD) as grad_x_SD:
            grad_x = own(grad_x_SD) if needs_x else []
            _each_expert(one_expert, ctx.offsets, gate_up_EGD)
            grad_x_TD = _sum_by_token(grad_x_SD, slot_S, token_offsets_T) if needs_x else None
        if grad_weight_S is not None:
            grad_weight_S = grad_weight_S.to(weight_S.dtype)
        return grad_x_TD, grad_weight_S, grad_gate_up_EGD, grad_down_EDF, None


def _weigh_outputs(down_EDF: Tensor) -> bool:
    """Whether backward applies the weights to the D-wide gradients of outputs; else to those of the F-wide hidden rows.

    The latter takes one more pass, but needs no outputs kept.
    """
    _, width, hidden = down_EDF.shape
    return width <= 2 * hidden


def _by_expert(offsets: Sequence[int]) -> Callable[[Tensor | None], Sequence[Any]]:
    """A function that cuts a tensor's rows into those of each expert; of None it makes Nones."""
    counts = [end - begin for begin, end in pairwise(offsets)]
    return lambda rows: [None] * len(counts) if rows is None else torch.split(rows, counts)


def _zeros_where_idle(weights: Tensor, offsets: Sequence[int]) -> Tensor:
    """Room for gradients of the experts' weights: zeros for those without work, which nothing else will write."""
    grads = torch.empty_like(weights)
    for grad, (begin, end) in zip(grads, pairwise(offsets), strict=True):
        if begin == end:
            grad.zero_()
    return grads


def _sum_by_token(rows_SD: Tensor, slot_S: Tensor, token_offsets_T: Tensor, weight_S: Tensor | None = None) -> Tensor:
    """The sum of each token's rows, times their weights (in the order of slot_S) if given: one pass over the rows."""
    if slot_S.numel() == 0:
        return rows_SD.new_zeros(token_offsets_T.numel(), rows_SD.shape[1])
    weights = None if weight_S is None else weight_S.to(rows_SD.dtype)
    return F.embedding_bag(slot_S, rows_SD, token_offsets_T, mode="sum", per_sample_weights=weights)


def _each_expert(one_expert: Callable[[int], None], offsets: Sequence[int], gate_up_EGD: Tensor) -> None:
    """Calls one_expert for every expert that has work, the busiest first, side by side where that pays."""
    counts = [end - begin for begin, end in pairwise(offsets)]
    busiest_first = sorted((e for e, count in enumerate(counts) if count), key=lambda e: -counts[e])
    if _worth_waking_workers(max(counts), offsets[-1], gate_up_EGD):
        workers().run(one_expert, busiest_first)
    else:
        for expert in busiest_first:
            one_expert(expert)


def _worth_waking_workers(busiest: int, size: int, gate_up_EGD: Tensor) -> bool:
    """Not for little work, nor where one expert has so much that it would be left to one core at the end."""
    _, gate_up, width = gate_up_EGD.shape
    threads = torch.get_num_threads()
    if not gate_up_EGD.is_cpu or threads == 1 or size * gate_up * width < _WORTH_WAKING_WORKERS:
        return False
    return busiest * threads <= size * _MOST_UNEVEN
