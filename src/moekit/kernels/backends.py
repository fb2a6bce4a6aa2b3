"""What computes the experts of a layer: chosen here and nowhere else."""

from typing import Literal, Protocol

from torch import Tensor

from moekit.kernels.assignments import Assignments
from moekit.kernels.reference.experts import experts as reference_experts
from moekit.kernels.torch.activation import SILU_GATED, Activation
from moekit.kernels.torch.experts import experts as torch_experts

Backend = Literal["reference", "torch"]


class ExpertsKernel(Protocol):
    """What computes the experts. The biases are there or not, each for itself."""

    def __call__(
        self,
        x_TD: Tensor,
        assignments: Assignments,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        activation: Activation = SILU_GATED,
        gate_up_bias_EG: Tensor | None = None,
        down_bias_ED: Tensor | None = None,
    ) -> Tensor:
        """y_TD: for each token, the sum over its assignments of weight * down(act(gate(x)) * up(x))."""


_EXPERTS: dict[Backend, ExpertsKernel] = {"reference": reference_experts, "torch": torch_experts}


def experts_kernel(backend: Backend) -> ExpertsKernel:
    """The function of a backend; all agree to rounding."""
    return _EXPERTS[backend]
