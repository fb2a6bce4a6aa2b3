"""Activations between the two products of a feed-forward network: one pass forward, one backward.

Legend: T rows, F hidden width, G columns of the first product: 2 F (gate, then up) where it is gated, else F.
"""

from torch import Tensor

from moekit.config import ActivationName
from moekit.kernels.training.compiled import training

# Their numbers in native/kernels/vector_ops.h.
FUNCTIONS: dict[ActivationName, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


def activation_forward(name: ActivationName, gated: bool, x_TG: Tensor) -> Tensor:
    """Compute hidden_TF = act(gate) * up, or act(up), for x_TG in bf16; it is rounded once."""
    width = x_TG.shape[-1] // 2 if gated else x_TG.shape[-1]
    hidden_TF = x_TG.new_empty((*x_TG.shape[:-1], width))
    training().activation_forward(FUNCTIONS[name], gated, x_TG, hidden_TF)
    return hidden_TF


def activation_backward(name: ActivationName, gated: bool, grad_hidden_TF: Tensor, x_TG: Tensor) -> Tensor:
    """Compute grad_x_TG from the gradient of hidden_TF and from the x_TG that gave it."""
    grad_x_TG = x_TG.new_empty(x_TG.shape)
    training().activation_backward(FUNCTIONS[name], gated, grad_hidden_TF, x_TG, grad_x_TG)
    return grad_x_TG
