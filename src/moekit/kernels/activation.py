"""Activations between the two products of a feed-forward network, and their gradients, in few passes over memory.

act(gate) * up, or act(up) alone, for the dense network and for experts alike. In bfloat16 one pass costs up to a tenth
of a matrix product of the same rows, and autograd's own way with the two halves of one matrix takes more of them: it
copies the gradients together.

Legend: T rows, F hidden width, G columns of the first product: 2 F (gate, then up) where it is gated, else F.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moekit.config import ActivationName
from moekit.kernels.training.activation_passes import activation_backward, activation_forward
from moekit.kernels.training.compiled import takes_bf16

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Function:
    """An activation's forward(x, out), and its backward(grad, x, out), whose out may be grad itself."""

    forward: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor, Tensor], Any]


def _gelu(approximate: str) -> _Function:
    return _Function(
        lambda x, out: _aten.gelu.out(x, approximate=approximate, out=out),
        lambda grad, x, out: _aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=out),
    )


_FUNCTIONS: dict[ActivationName, _Function] = {
    "silu": _Function(
        lambda x, out: _aten.silu.out(x, out=out),
        lambda grad, x, out: _aten.silu_backward.grad_input(grad, x, grad_input=out),
    ),
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "relu": _Function(
        lambda x, out: torch.clamp_min(x, 0, out=out),
        lambda grad, x, out: _aten.threshold_backward.grad_input(grad, x, 0, grad_input=out),
    ),
}


@dataclass(frozen=True)
class Activation:
    """An activation function, and whether it is applied to a gate that multiplies the up projection.

    Attributes:
        name: the function.
        gated: True for act(gate) * up, False for act(up).
    """

    name: ActivationName = "silu"
    gated: bool = True

    def __call__(self, x_TG: Tensor) -> Tensor:
        """Compute hidden_TF from x_TG; the result can be differentiated once."""
        if torch.is_grad_enabled() and x_TG.requires_grad:
            hidden_TF: Tensor = _Activate.apply(x_TG, self)  # type: ignore[no-untyped-call]
            return hidden_TF
        if takes_bf16(x_TG):
            return activation_forward(self.name, self.gated, x_TG)
        if not self.gated:
            return self.write(x_TG, x_TG, torch.empty_like(x_TG))
        gate_TF, up_TF = x_TG.chunk(2, dim=-1)
        activated_TF = torch.empty_like(gate_TF, memory_format=torch.contiguous_format)
        _FUNCTIONS[self.name].forward(gate_TF, activated_TF)
        return activated_TF.mul_(up_TF)

    def room(self, x_TG: Tensor, size: int) -> Tensor:
        """Allocate what `write` keeps of `size` rows beside its result.

        That is the activated gate, or a tensor without rows where there is no gate.
        """
        return x_TG.new_empty(size if self.gated else 0, x_TG.shape[-1] // 2)

    def write(self, x_TG: Tensor, activated_TF: Tensor, hidden_TF: Tensor) -> Tensor:
        """Write hidden_TF and give it back; write the activated gate, where there is one, into activated_TF."""
        function = _FUNCTIONS[self.name].forward
        if not self.gated:
            function(x_TG, hidden_TF)
            return hidden_TF
        gate_TF, up_TF = x_TG.chunk(2, dim=-1)
        function(gate_TF, activated_TF)
        return torch.mul(activated_TF, up_TF, out=hidden_TF)

    def backward(self, grad_hidden_TF: Tensor, x_TG: Tensor, activated_TF: Tensor) -> Tensor:
        """Compute grad_x_TG from the gradient of hidden_TF, and from what `write` took and wrote."""
        function = _FUNCTIONS[self.name].backward
        grad_x_TG = torch.empty_like(x_TG)
        if not self.gated:
            function(grad_hidden_TF, x_TG, grad_x_TG)
            return grad_x_TG
        gate_TF, up_TF = x_TG.chunk(2, dim=-1)
        grad_gate_TF, grad_up_TF = grad_x_TG.chunk(2, dim=-1)
        torch.mul(grad_hidden_TF, activated_TF, out=grad_up_TF)
        torch.mul(grad_hidden_TF, up_TF, out=grad_gate_TF)
        function(grad_gate_TF, gate_TF, grad_gate_TF)
        return grad_x_TG


SILU_GATED = Activation()


def plain_activation(x_TG: Tensor, activation: Activation) -> Tensor:
    """Compute hidden_TF with torch's own functions, left to autograd: the reference for `Activation`."""
    functions: dict[ActivationName, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
    }
    function = functions[activation.name]
    if not activation.gated:
        return function(x_TG)
    gate_TF, up_TF = x_TG.chunk(2, dim=-1)
    return function(gate_TF) * up_TF


class _Activate(torch.autograd.Function):
    """The activation as one node of autograd's graph; it saves x_TG and, where torch computes, the activated gate."""

    @staticmethod
    def forward(ctx: Any, x_TG: Tensor, activation: Activation) -> Tensor:
        ctx.activation, ctx.compiled = activation, takes_bf16(x_TG)
        if ctx.compiled:
            ctx.save_for_backward(x_TG, None)
            return activation_forward(activation.name, activation.gated, x_TG)
        width = x_TG.shape[-1] // 2 if activation.gated else x_TG.shape[-1]
        hidden_TF = x_TG.new_empty((*x_TG.shape[:-1], width))
        activated_TF = torch.empty_like(hidden_TF) if activation.gated else hidden_TF
        activation.write(x_TG, activated_TF, hidden_TF)
        ctx.save_for_backward(x_TG, activated_TF if activation.gated else None)
        return hidden_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden_TF: Tensor) -> tuple[Tensor, None]:
        x_TG, activated_TF = ctx.saved_tensors
        activation: Activation = ctx.activation
        if ctx.compiled:
            grad_hidden_TF = grad_hidden_TF.contiguous()
            return activation_backward(activation.name, activation.gated, grad_hidden_TF, x_TG), None
        return activation.backward(grad_hidden_TF, x_TG, activated_TF), None
