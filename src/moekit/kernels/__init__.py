"""The fast paths behind `nn/` and `moe/`: a folder a backend, chosen here and nowhere else."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from moekit.kernels.assignments import Assignments, assign, assign_top_k, inverse_permutation, stable_argsort
from moekit.kernels.reference.experts import experts as reference_experts
from moekit.kernels.torch.activation import Activation
from moekit.kernels.torch.experts import experts as torch_experts

Backend = Literal["reference", "torch"]
ExpertsKernel = Callable[[Tensor, Assignments, Tensor, Tensor, Activation], Tensor]

_EXPERTS: dict[Backend, ExpertsKernel] = {"reference": reference_experts, "torch": torch_experts}


def experts_kernel(backend: Backend) -> ExpertsKernel:
    """The function (x_TD, assignments, gate_up_EGD, down_EDF, activation) -> y_TD of a backend.

    All agree to rounding.
    """
    return _EXPERTS[backend]


__all__ = [
    "Activation",
    "Assignments",
    "Backend",
    "ExpertsKernel",
    "assign",
    "assign_top_k",
    "experts_kernel",
    "inverse_permutation",
    "stable_argsort",
]
