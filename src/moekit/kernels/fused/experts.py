"""A layer's experts in bf16 as one call forward and one backward; a dense network is one expert of all tokens.

Sums of products are fp32. Weights are fp32 or bf16, rounded to bf16 and packed as they are needed, an expert at a time;
their gradients are written once, in the weights' own dtype.

Legend: T tokens, S assignments, D model width, F expert width, G = 2 F (gate, then up) or F, E experts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.kernels.activation import SILU_GATED, Activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.experts_kernel import ExpertWeights
from moekit.kernels.training.activation_passes import FUNCTIONS
from moekit.kernels.training.compiled import multiplies_bf16, training


def fits_fused(x_TD: Tensor, weights: ExpertWeights) -> bool:
    """Tell whether `fused_experts` is for this call: products in bf16, on a processor that has them.

    Those are products under autocast to bf16, or of tensors that are bf16 themselves, on a CPU. Widths must be even,
    since numbers are multiplied in pairs, and the weights must lie as parameters do.
    """
    if not (x_TD.is_cpu and multiplies_bf16()):
        return False
    present = [tensor for tensor in weights if tensor is not None]
    if torch.is_autocast_enabled("cpu"):
        in_bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        dtypes = {torch.float32, torch.bfloat16}
    else:
        in_bf16, dtypes = x_TD.dtype == torch.bfloat16, {torch.bfloat16}
    return (
        in_bf16
        and x_TD.dtype in dtypes
        and all(tensor.dtype in dtypes and tensor.is_cpu and tensor.is_contiguous() for tensor in present)
        and x_TD.shape[-1] % 2 == weights.down_EDF.shape[2] % 2 == 0
    )


def fused_experts(
    x_TD: Tensor,
    assignments: Assignments | None,
    weights: ExpertWeights,
    activation: Activation = SILU_GATED,
) -> Tensor:
    """Compute an `ExpertsKernel`'s y_TD in bf16; it can be differentiated once.

    Args:
        x_TD: the tokens' rows, rounded to bf16 where they are not.
        assignments: None where the one expert of `weights` has all tokens at weight 1: the dense network.
        weights: such as `fits_fused` says yes to.
        activation: between the two products.
    """
    x_TD = x_TD.to(torch.bfloat16).contiguous()
    weight_S = None if assignments is None else assignments.weight_S
    differentiable = (x_TD, weight_S, *weights)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in differentiable):
        y_TD: Tensor = _Experts.apply(*differentiable, assignments, activation)  # type: ignore[no-untyped-call]
        return y_TD
    return _forward(x_TD, weights, assignments, activation, saved_SG=None)


class _Order(NamedTuple):
    """Assignments as the compiled module takes them; for none, all rows of x in one expert."""

    offsets: list[int]
    token_S: Tensor | None
    slot_S: Tensor | None
    token_offsets_T: Tensor | None
    weight_S: Tensor | None

    @property
    def assignments(self) -> int:
        return self.offsets[-1]


def _order(assignments: Assignments | None, tokens: int) -> _Order:
    if assignments is None:
        return _Order([0, tokens], None, None, None, None)
    token_S, weight_S, offsets, slot_S, token_offsets_T = assignments
    return _Order(
        list(offsets),
        token_S.contiguous(),
        slot_S.contiguous(),
        token_offsets_T.contiguous(),
        weight_S.detach().to(torch.float32).contiguous(),
    )


def _floats(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().to(torch.float32)


def _forward(
    x_TD: Tensor,
    weights: ExpertWeights,
    assignments: Assignments | None,
    activation: Activation,
    saved_SG: Tensor | None,
) -> Tensor:
    """Compute y_TD; write what backward needs into saved_SG, where it is given."""
    order = _order(assignments, x_TD.shape[0])
    y_TD = torch.empty_like(x_TD)
    rows_SD = y_TD if assignments is None else x_TD.new_empty(order.assignments, x_TD.shape[1])
    training().experts_forward(
        *(x_TD, order.offsets, order.token_S, order.slot_S, order.token_offsets_T, order.weight_S),
        *(weights.gate_up_EGD, weights.down_EDF, _floats(weights.gate_up_bias_EG), _floats(weights.down_bias_ED)),
        *(activation.gated, FUNCTIONS[activation.name], saved_SG, rows_SD, y_TD),
    )
    return y_TD


class _Experts(torch.autograd.Function):
    """The experts as one node of autograd's graph, which saves x_TD and what the first product gave."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_S: Tensor | None,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        gate_up_bias_EG: Tensor | None,
        down_bias_ED: Tensor | None,
        assignments: Assignments | None,
        activation: Activation,
    ) -> Tensor:
        rows = x_TD.shape[0] if assignments is None else assignments.expert_offsets[-1]
        saved_SG = x_TD.new_empty(rows, gate_up_EGD.shape[1])
        weights = ExpertWeights(gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED)
        y_TD = _forward(x_TD, weights, assignments, activation, saved_SG)
        # The discrete part stands beside what autograd watches: it has no gradients.
        ctx.offsets = None if assignments is None else assignments.expert_offsets
        ctx.activation = activation
        order = (None, None, None) if assignments is None else (assignments.token_S, *assignments[3:])
        ctx.save_for_backward(x_TD, weight_S, *weights, *order, saved_SG)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: under activation checkpointing, asking is what recomputes them
        x_TD, weight_S, gate_up_EGD, down_EDF, gate_up_bias_EG, down_bias_ED = saved[:6]
        token_S, slot_S, token_offsets_T, saved_SG = saved[6:]
        needs_x, needs_weight, *needs_weights = ctx.needs_input_grad[:6]
        assignments = (
            None if ctx.offsets is None else Assignments(token_S, weight_S, ctx.offsets, slot_S, token_offsets_T)
        )
        order = _order(assignments, x_TD.shape[0])
        activation: Activation = ctx.activation

        grad_weight_S = x_TD.new_empty(order.assignments, dtype=torch.float32) if needs_weight else None
        grad_x_TD = torch.empty_like(x_TD) if needs_x else None
        grad_rows_SD = grad_x_TD
        if needs_x and assignments is not None:
            grad_rows_SD = x_TD.new_empty(order.assignments, x_TD.shape[1])
        some = any(needs_weights)
        grad_gate_up_EGD, grad_down_EDF = (
            (torch.empty_like(gate_up_EGD), torch.empty_like(down_EDF)) if some else (None, None)
        )
        grad_gate_up_bias_EG, grad_down_bias_ED = (
            torch.empty_like(bias, dtype=torch.float32) if bias is not None and needed else None
            for bias, needed in zip((gate_up_bias_EG, down_bias_ED), needs_weights[2:], strict=True)
        )
        training().experts_backward(
            *(grad_y_TD.contiguous(), x_TD, order.offsets, order.token_S, order.slot_S, order.token_offsets_T),
            *(order.weight_S, gate_up_EGD, down_EDF, _floats(down_bias_ED)),
            *(activation.gated, FUNCTIONS[activation.name], saved_SG),
            *(grad_weight_S, grad_rows_SD, grad_x_TD, grad_gate_up_EGD, grad_down_EDF),
            *(grad_gate_up_bias_EG, grad_down_bias_ED),
        )
        return (
            grad_x_TD,
            None if grad_weight_S is None or weight_S is None else grad_weight_S.to(weight_S.dtype),
            grad_gate_up_EGD if needs_weights[0] else None,
            grad_down_EDF if needs_weights[1] else None,
            _like(grad_gate_up_bias_EG, gate_up_bias_EG),
            _like(grad_down_bias_ED, down_bias_ED),
            None,
            None,
        )


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """Round a gradient to its parameter's dtype."""
    return None if grad is None or parameter is None else grad.to(parameter.dtype)
