"""Experts as a loop of matrix products over what each run of experts was assigned, with a backward pass of its own.

Besides the loop, three things make it fast: the rows of a token are weighted and summed by `embedding_bag` in one pass
over memory; everything between belongs to one run and stays in the cache; on a CPU small experts are multiplied
together (see `padding`), and several runs at a time, each on one core.

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F (gate, then up) or F, E experts. In the
functions that serve one run of N experts, S are its own assignments.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo  # the public form imports all of dynamo, two seconds
from torch.autograd.function import once_differentiable

from moekit.kernels.activation import SILU_GATED, Activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.experts_kernel import ExpertWeights
from moekit.kernels.torch.grouped import fits_grouped, grouped_experts
from moekit.kernels.torch.padding import Run, padded
from moekit.kernels.torch.scratch import scratch
from moekit.kernels.workers import workers

# Below this many multiplications, waking the workers costs more than they save.
_WORTH_WAKING_WORKERS = 20_000_000
# Nor do they pay if the longest run has more than this times a core's fair share of the rows.
_MOST_UNEVEN = 1.25


@_disable_dynamo  # a graph of torch.compile ends here: these loops and workers are not for tracing
def experts(
    x_TD: Tensor, assignments: Assignments, weights: ExpertWeights, activation: Activation = SILU_GATED
) -> Tensor:
    """Compute an `ExpertsKernel`'s y_TD, several experts at a time; it can be differentiated once.

    Under autocast the products are in autocast's dtype, as those of nn.Linear are, and so is y_TD.
    """
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_TD = x_TD.to(dtype)
        weights = weights.to(dtype)
    if fits_grouped(x_TD, weights.down_EDF):
        return grouped_experts(x_TD, assignments, weights, activation)
    one_expert = weights.gate_up_EGD[0].numel() + weights.down_EDF[0].numel()
    assignments, runs = padded(assignments, x_TD.device, x_TD.dtype, one_expert)
    differentiable = (x_TD, assignments.weight_S, *weights)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in differentiable):
        y_TD: Tensor = _Experts.apply(*differentiable, assignments, runs, activation)  # type: ignore[no-untyped-call]
        return y_TD
    return _without_gradients(x_TD, assignments, runs, weights, activation)


def _without_gradients(
    x_TD: Tensor,
    assignments: Assignments,
    runs: Sequence[Run],
    weights: ExpertWeights,
    activation: Activation,
) -> Tensor:
    """Compute y_TD and keep nothing for a backward pass."""
    token_S, weight_S, _, slot_S, token_offsets_T = assignments
    gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED = weights

    def one_run(run: Run) -> None:
        own, e = _places(run)
        x_SD = x_TD.index_select(0, token_S[own])
        gate_up_SG = x_SD.new_empty(x_SD.shape[0], gate_up_EGD.shape[1])
        _multiply(x_SD, gate_up_EGD[e].transpose(1, 2), gate_up_SG, _of(gate_up_bias_EG, e))
        _multiply(activation(gate_up_SG), down_EDF[e].transpose(1, 2), y_SD[own], _of(down_bias_ED, e))

    with scratch(token_S.numel(), x_TD) as y_SD:
        _each_run(one_run, runs, gate_up_EGD)
        return _sum_by_token(y_SD, slot_S, token_offsets_T, weight_S.index_select(0, slot_S))


class _Experts(torch.autograd.Function):
    """The experts as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_S: Tensor,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        gate_up_bias_EG: Tensor | None,
        down_bias_ED: Tensor | None,
        assignments: Assignments,
        runs: Sequence[Run],
        activation: Activation,
    ) -> Tensor:
        token_S, _, _, slot_S, token_offsets_T = assignments
        size, width, hidden = token_S.numel(), x_TD.shape[1], down_EDF.shape[2]
        gate_up_SG = x_TD.new_empty(size, gate_up_EGD.shape[1])
        activated_SF, hidden_SF = activation.room(gate_up_SG, size), x_TD.new_empty(size, hidden)
        keep_y = ctx.needs_input_grad[1] and _weigh_outputs(down_EDF, down_bias_ED)  # for the gradient of the weights

        def one_run(run: Run) -> None:
            own, e = _places(run)
            x_SD = x_TD.index_select(0, token_S[own])
            _multiply(x_SD, gate_up_EGD[e].transpose(1, 2), gate_up_SG[own], _of(gate_up_bias_EG, e))
            activation.write(gate_up_SG[own], activated_SF[own], hidden_SF[own])
            _multiply(hidden_SF[own], down_EDF[e].transpose(1, 2), y_SD[own], _of(down_bias_ED, e))

        with nullcontext(x_TD.new_empty(size, width)) if keep_y else scratch(size, x_TD) as y_SD:
            _each_run(one_run, runs, gate_up_EGD)
            y_TD = _sum_by_token(y_SD, slot_S, token_offsets_T, weight_S.index_select(0, slot_S))
        ctx.runs, ctx.activation = runs, activation
        ctx.save_for_backward(
            *(x_TD, weight_S, gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED),
            *(token_S, slot_S, token_offsets_T),
            *(gate_up_SG, activated_SF, hidden_SF, y_SD if keep_y else None),
        )
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: under activation checkpointing, asking is what recomputes them
        x_TD, weight_S, gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED = saved[:6]
        token_S, slot_S, token_offsets_T, gate_up_SG, activated_SF, hidden_SF, y_SD = saved[6:]
        needs_x, needs_weight, needs_gate_up, needs_down, needs_gate_up_bias, needs_down_bias, *_ = ctx.needs_input_grad
        needs_hidden = needs_x or needs_gate_up or needs_gate_up_bias
        weigh_outputs = _weigh_outputs(down_EDF, down_bias_ED)
        weight_S1 = weight_S.to(x_TD.dtype)[:, None]

        grad_weight_S = x_TD.new_zeros(token_S.numel()) if needs_weight else None
        grad_gate_up_EGD = _zeros_where_idle(gate_up_EGD, ctx.runs) if needs_gate_up else None
        grad_down_EDF = _zeros_where_idle(down_EDF, ctx.runs) if needs_down else None
        grad_gate_up_bias_EG = _zeros_where_idle(gate_up_bias_EG, ctx.runs) if needs_gate_up_bias else None
        grad_down_bias_ED = _zeros_where_idle(down_bias_ED, ctx.runs) if needs_down_bias else None

        def one_run(run: Run) -> None:
            own, e = _places(run)
            # The weights and their gradient take a pass each over rows that are either D or F wide: the narrower.
            grad_y_SD = grad_y_TD.index_select(0, token_S[own])
            own_hidden_SF = hidden_SF[own]
            if weigh_outputs:
                if grad_weight_S is not None:
                    torch.linalg.vecdot(grad_y_SD, y_SD[own], out=grad_weight_S[own])
                grad_y_SD.mul_(weight_S1[own])
            if grad_down_bias_ED is not None:
                _sum_rows(grad_y_SD, grad_down_bias_ED[e])
            if needs_hidden or not weigh_outputs:
                grad_hidden_SF = torch.empty_like(own_hidden_SF)
                _multiply(grad_y_SD, down_EDF[e], grad_hidden_SF)
            if not weigh_outputs:
                if grad_weight_S is not None:
                    torch.linalg.vecdot(grad_hidden_SF, own_hidden_SF, out=grad_weight_S[own])
                grad_hidden_SF.mul_(weight_S1[own])
                own_hidden_SF = own_hidden_SF * weight_S1[own]
            if grad_down_EDF is not None:
                _multiply_transposed(grad_y_SD, own_hidden_SF, grad_down_EDF[e])
            if not needs_hidden:
                return
            grad_gate_up_SG = ctx.activation.backward(grad_hidden_SF, gate_up_SG[own], activated_SF[own])
            if grad_gate_up_bias_EG is not None:
                _sum_rows(grad_gate_up_SG, grad_gate_up_bias_EG[e])
            if needs_x:
                _multiply(grad_gate_up_SG, gate_up_EGD[e], grad_x_SD[own])
            if grad_gate_up_EGD is not None:
                # gathered again rather than kept: as fast, and S rows less to hold
                _multiply_transposed(grad_gate_up_SG, x_TD.index_select(0, token_S[own]), grad_gate_up_EGD[e])

        with scratch(token_S.numel() if needs_x else 0, x_TD) as grad_x_SD:
            _each_run(one_run, ctx.runs, gate_up_EGD)
            grad_x_TD = _sum_by_token(grad_x_SD, slot_S, token_offsets_T) if needs_x else None
        if grad_weight_S is not None:
            grad_weight_S = grad_weight_S.to(weight_S.dtype)
        of_weights = (grad_gate_up_EGD, grad_down_EDF, grad_gate_up_bias_EG, grad_down_bias_ED)
        return grad_x_TD, grad_weight_S, *of_weights, None, None, None


def _places(run: Run) -> tuple[slice, slice]:
    """Give the run's rows and its experts as slices."""
    return slice(run.begin, run.end), slice(run.first, run.first + run.experts)


def _of(bias_EB: Tensor | None, experts: slice) -> Tensor | None:
    """Give those experts' biases, or None where there are none."""
    return None if bias_EB is None else bias_EB[experts]


def _multiply(rows_SA: Tensor, weights_NAB: Tensor, out_SB: Tensor, bias_NB: Tensor | None = None) -> None:
    """Multiply each of N experts' rows with its matrix and add its bias, where there is one.

    The experts have the same number of rows, one after the other.
    """
    experts, inner, outer = weights_NAB.shape
    if experts == 1:
        if bias_NB is None:
            torch.mm(rows_SA, weights_NAB[0], out=out_SB)
        else:
            torch.addmm(bias_NB[0], rows_SA, weights_NAB[0], out=out_SB)
        return
    rows_NSA, out_NSB = rows_SA.view(experts, -1, inner), out_SB.view(experts, -1, outer)
    if bias_NB is None:
        torch.bmm(rows_NSA, weights_NAB, out=out_NSB)
    else:
        torch.baddbmm(bias_NB[:, None], rows_NSA, weights_NAB, out=out_NSB)


def _sum_rows(rows_SB: Tensor, out_NB: Tensor) -> None:
    """Sum each expert's rows: the gradient of its bias."""
    torch.sum(rows_SB.view(out_NB.shape[0], -1, out_NB.shape[1]), 1, out=out_NB)


def _multiply_transposed(left_SA: Tensor, right_SB: Tensor, out_NAB: Tensor) -> None:
    """Sum the outer products of left and right over each expert's rows: the gradient of its matrix."""
    experts, left, right = out_NAB.shape
    if experts == 1:
        torch.mm(left_SA.t(), right_SB, out=out_NAB[0])
    else:
        torch.bmm(left_SA.view(experts, -1, left).transpose(1, 2), right_SB.view(experts, -1, right), out=out_NAB)


def _weigh_outputs(down_EDF: Tensor, down_bias_ED: Tensor | None) -> bool:
    """Tell whether backward applies the weights to the D-wide gradients of outputs; else to the F-wide hidden rows'.

    The latter takes one more pass, but needs no outputs kept; and hidden rows do not know of a bias that comes after.
    """
    _, width, hidden = down_EDF.shape
    return width <= 2 * hidden or down_bias_ED is not None


def _zeros_where_idle(weights: Tensor, runs: Sequence[Run]) -> Tensor:
    """Allocate gradients of the experts' weights, with zeros for idle experts, whose part nothing else will write."""
    grads = torch.empty_like(weights)
    written = 0
    for run in runs:
        grads[written : run.first].zero_()
        written = run.first + run.experts
    grads[written:].zero_()
    return grads


def _sum_by_token(rows_SD: Tensor, slot_S: Tensor, token_offsets_T: Tensor, weight_S: Tensor | None = None) -> Tensor:
    """Sum each token's rows, times their weights (in the order of slot_S) if given, in one pass over the rows."""
    if slot_S.numel() == 0:
        return rows_SD.new_zeros(token_offsets_T.numel(), rows_SD.shape[1])
    weights = None if weight_S is None else weight_S.to(rows_SD.dtype)
    return F.embedding_bag(slot_S, rows_SD, token_offsets_T, mode="sum", per_sample_weights=weights)


def _each_run(one_run: Callable[[Run], None], runs: Sequence[Run], gate_up_EGD: Tensor) -> None:
    """Call one_run for every run of experts, the longest first, side by side where that pays."""
    longest_first = sorted(runs, key=lambda run: run.begin - run.end)
    if _worth_waking_workers(longest_first, gate_up_EGD):
        workers().run(one_run, longest_first)
    else:
        for run in longest_first:
            one_run(run)


def _worth_waking_workers(longest_first: Sequence[Run], gate_up_EGD: Tensor) -> bool:
    """Tell whether workers pay: not for little work, nor where one long run would be left to one core at the end."""
    _, gate_up, width = gate_up_EGD.shape
    threads = torch.get_num_threads()
    size = sum(run.end - run.begin for run in longest_first)
    if not gate_up_EGD.is_cpu or threads == 1 or size * gate_up * width < _WORTH_WAKING_WORKERS:
        return False
    return (longest_first[0].end - longest_first[0].begin) * threads <= size * _MOST_UNEVEN
