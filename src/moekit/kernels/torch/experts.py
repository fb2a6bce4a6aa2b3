"""Experts as a loop of matrix products over what each expert was assigned, with a backward pass of its own.

What makes it fast, beside the loop: rows are gathered and summed by `embedding_bag` in one pass over memory; everything
between belongs to one expert and stays in the cache; on a CPU several experts run at a time, each on one core.

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F (gate, then up), E experts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.kernels.assignments import Assignments
from moekit.kernels.torch.workers import workers

# Below this many multiplications, waking the workers costs more than they save.
_WORTH_WAKING_WORKERS = 20_000_000


def experts(x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    """y_TD: for each token, the sum over its assignments of weight * down(silu(gate(x)) * up(x)).

    gate_up_EGD: gate over up, G = 2 F rows per expert; down_EDF. Tokens without an assignment get zeros.
    Under autocast the products are in autocast's dtype, as those of nn.Linear are, and so is y_TD.
    Differentiable once with respect to x_TD, assignments.weight_S, gate_up_EGD and down_EDF.
    """
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _experts(x_TD.to(dtype), assignments, gate_up_EGD.to(dtype), down_EDF.to(dtype))
    return _experts(x_TD, assignments, gate_up_EGD, down_EDF)


def _experts(x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    differentiable = (x_TD, assignments.weight_S, gate_up_EGD, down_EDF)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable):
        y_TD: Tensor = _Experts.apply(x_TD, assignments.weight_S, gate_up_EGD, down_EDF, assignments)  # type: ignore[no-untyped-call]
        return y_TD
    return _forward(x_TD, assignments, gate_up_EGD, down_EDF)[0]


def _forward(
    x_TD: Tensor, assignments: Assignments, gate_up_EGD: Tensor, down_EDF: Tensor, save: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """y_TD and, to save, gate_up_SG (before the activation) and y_SD (before the weights)."""
    token_S, weight_S, offsets, slot_S, token_offsets_T = assignments
    gate_up_SG = x_TD.new_empty(token_S.numel() if save else 0, gate_up_EGD.shape[1])
    y_SD = x_TD.new_empty(token_S.numel(), x_TD.shape[1])

    def one_expert(expert: int) -> None:
        own = slice(offsets[expert], offsets[expert + 1])
        x_SD = x_TD.index_select(0, token_S[own])
        if save:
            own_gate_up_SG = torch.mm(x_SD, gate_up_EGD[expert].t(), out=gate_up_SG[own])
        else:
            own_gate_up_SG = torch.mm(x_SD, gate_up_EGD[expert].t())
        gate_SF, up_SF = own_gate_up_SG.chunk(2, dim=1)
        hidden_SF = F.silu(gate_SF).mul_(up_SF)
        torch.mm(hidden_SF, down_EDF[expert].t(), out=y_SD[own])

    _each_expert(one_expert, offsets, gate_up_EGD)
    y_TD = _sum_by_token(y_SD, slot_S, token_offsets_T, weight_S.index_select(0, slot_S))
    return y_TD, gate_up_SG, y_SD


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
        y_TD, gate_up_SG, y_SD = _forward(
            x_TD, assignments._replace(weight_S=weight_S), gate_up_EGD, down_EDF, save=True
        )
        token_S, _, ctx.offsets, slot_S, token_offsets_T = assignments
        ctx.save_for_backward(
            x_TD,
            weight_S,
            gate_up_EGD,
            down_EDF,
            token_S,
            slot_S,
            token_offsets_T,
            gate_up_SG,
            y_SD if ctx.needs_input_grad[1] else None,  # only the gradient of the weights asks for it
        )
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_S, gate_up_EGD, down_EDF, token_S, slot_S, token_offsets_T, gate_up_SG, y_SD = (
            ctx.saved_tensors
        )
        offsets: tuple[int, ...] = ctx.offsets
        needs_x, needs_weight, needs_gate_up, needs_down, _ = ctx.needs_input_grad
        grad_y_TD = grad_y_TD.contiguous()
        row_weight_S = weight_S.to(grad_y_TD.dtype)
        arange_S = torch.arange(token_S.numel(), device=token_S.device)
        grad_x_SD = x_TD.new_empty(token_S.numel(), x_TD.shape[1]) if needs_x else None
        grad_weight_S = grad_y_TD.new_empty(token_S.numel()) if needs_weight else None
        grad_gate_up_EGD = torch.empty_like(gate_up_EGD) if needs_gate_up else None
        grad_down_EDF = torch.empty_like(down_EDF) if needs_down else None

        def one_expert(expert: int) -> None:
            own = slice(offsets[expert], offsets[expert + 1])
            rows = arange_S[: own.stop - own.start]
            if grad_weight_S is not None:
                grad_weight_S[own] = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad_y_TD, y_SD[own], rows, rows, token_S[own], _SUM
                )
            if not (needs_x or needs_gate_up or needs_down):
                return
            grad_y_SD = F.embedding_bag(
                token_S[own], grad_y_TD, rows, mode="sum", per_sample_weights=row_weight_S[own]
            )
            gate_SF, up_SF = gate_up_SG[own].chunk(2, dim=1)
            activated_SF = F.silu(gate_SF)
            if grad_down_EDF is not None:
                torch.mm(grad_y_SD.t(), activated_SF * up_SF, out=grad_down_EDF[expert])
            if not (needs_x or needs_gate_up):
                return
            grad_hidden_SF = torch.mm(grad_y_SD, down_EDF[expert])
            grad_gate_up_SG = torch.empty_like(gate_up_SG[own])
            grad_gate_SF, grad_up_SF = grad_gate_up_SG.chunk(2, dim=1)
            torch.mul(grad_hidden_SF, activated_SF, out=grad_up_SF)
            torch.ops.aten.silu_backward.grad_input(
                grad_hidden_SF.mul_(up_SF), gate_SF, grad_input=grad_gate_SF
            )
            if grad_x_SD is not None:
                torch.mm(grad_gate_up_SG, gate_up_EGD[expert], out=grad_x_SD[own])
            if grad_gate_up_EGD is not None:
                x_SD = x_TD.index_select(0, token_S[own])
                torch.mm(grad_gate_up_SG.t(), x_SD, out=grad_gate_up_EGD[expert])

        _each_expert(one_expert, offsets, gate_up_EGD)
        for grad in (grad_gate_up_EGD, grad_down_EDF):
            if grad is not None:
                for expert, (begin, end) in enumerate(pairwise(offsets)):
                    if begin == end:
                        grad[expert].zero_()
        grad_x_TD = None if grad_x_SD is None else _sum_by_token(grad_x_SD, slot_S, token_offsets_T, None)
        if grad_weight_S is not None:
            grad_weight_S = grad_weight_S.to(weight_S.dtype)
        return grad_x_TD, grad_weight_S, grad_gate_up_EGD, grad_down_EDF, None


_SUM = 0  # aten's number for embedding_bag's mode "sum"


def _sum_by_token(
    rows_SD: Tensor, slot_S: Tensor, token_offsets_T: Tensor, weight_S: Tensor | None
) -> Tensor:
    """Sums each token's rows, weighted if weights (ordered by token) are given, in one pass over the rows."""
    if rows_SD.numel() == 0:
        return rows_SD.new_zeros(token_offsets_T.numel(), rows_SD.shape[1])
    weights = None if weight_S is None else weight_S.to(rows_SD.dtype)
    return F.embedding_bag(slot_S, rows_SD, token_offsets_T, mode="sum", per_sample_weights=weights)


def _each_expert(one_expert: Callable[[int], None], offsets: Sequence[int], gate_up_EGD: Tensor) -> None:
    """Calls one_expert for every expert that has work, side by side where that pays."""
    loads = [(end - begin, -expert) for expert, (begin, end) in enumerate(pairwise(offsets))]
    work = offsets[-1] * gate_up_EGD.shape[1] * gate_up_EGD.shape[2]
    largest_first = [-negative for load, negative in sorted(loads, reverse=True) if load]
    if gate_up_EGD.is_cpu and work > _WORTH_WAKING_WORKERS and torch.get_num_threads() > 1:
        workers().run(one_expert, largest_first)
    else:
        for expert in largest_first:
            one_expert(expert)
