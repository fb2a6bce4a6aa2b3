"""silu(gate) * up and its gradient, in few passes over memory: for the dense network and for experts alike.

In bfloat16 one such pass costs up to a tenth of a matrix product of the same rows, and autograd's own way with the two
halves of one matrix takes more of them: it copies the gradients together.

Legend: T rows, F hidden width, G = 2 F (gate, then up).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_activation(gate_up_TG: Tensor) -> Tensor:
    """hidden_TF = silu(gate_TF) * up_TF, differentiable once. gate_up_TG: gate, then up, along the last dimension."""
    if torch.is_grad_enabled() and gate_up_TG.requires_grad:
        hidden_TF: Tensor = _GatedActivation.apply(gate_up_TG)  # type: ignore[no-untyped-call]
        return hidden_TF
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    return F.silu(gate_TF).mul_(up_TF)


def activate(gate_up_TG: Tensor, activated_TF: Tensor, hidden_TF: Tensor) -> Tensor:
    """Writes silu(gate) into activated_TF and hidden_TF = silu(gate) * up, which is returned."""
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate_TF, out=activated_TF)
    return torch.mul(activated_TF, up_TF, out=hidden_TF)


def activate_backward(grad_hidden_TF: Tensor, gate_up_TG: Tensor, activated_TF: Tensor) -> Tensor:
    """grad_gate_up_TG from what `activate` took and wrote."""
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=-1)
    grad_gate_up_TG = torch.empty_like(gate_up_TG)
    grad_gate_TF, grad_up_TF = grad_gate_up_TG.chunk(2, dim=-1)
    torch.mul(grad_hidden_TF, activated_TF, out=grad_up_TF)
    torch.mul(grad_hidden_TF, up_TF, out=grad_gate_TF)
    torch.ops.aten.silu_backward.grad_input(grad_gate_TF, gate_TF, grad_input=grad_gate_TF)
    return grad_gate_up_TG


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TG: Tensor) -> Tensor:
        shape_TF = (*gate_up_TG.shape[:-1], gate_up_TG.shape[-1] // 2)
        activated_TF, hidden_TF = gate_up_TG.new_empty(shape_TF), gate_up_TG.new_empty(shape_TF)
        ctx.save_for_backward(gate_up_TG, activated_TF)
        return activate(gate_up_TG, activated_TF, hidden_TF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden_TF: Tensor) -> Tensor:
        gate_up_TG, activated_TF = ctx.saved_tensors
        return activate_backward(grad_hidden_TF, gate_up_TG, activated_TF)
