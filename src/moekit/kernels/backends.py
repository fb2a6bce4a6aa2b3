"""The backends that compute the experts of a layer: chosen here and nowhere else."""

from typing import Literal

from moekit.kernels.experts_kernel import ExpertsKernel
from moekit.kernels.reference.experts import experts as reference_experts
from moekit.kernels.torch.experts import experts as torch_experts

Backend = Literal["reference", "torch"]

_EXPERTS: dict[Backend, ExpertsKernel] = {"reference": reference_experts, "torch": torch_experts}


def experts_kernel(backend: Backend) -> ExpertsKernel:
    """Give the function with which a backend computes experts; all of them agree to rounding."""
    return _EXPERTS[backend]
