"""The backends that compute the experts of a layer, and dense networks: chosen here and nowhere else."""

from typing import Literal

from torch import Tensor
from torch._compile import _disable_dynamo  # the public form imports all of dynamo, two seconds

from moekit.kernels.activation import SILU_GATED, Activation
from moekit.kernels.assignments import Assignments
from moekit.kernels.experts_kernel import ExpertsKernel, ExpertWeights
from moekit.kernels.fused.experts import fits_fused, fused_experts
from moekit.kernels.reference.experts import experts as reference_experts
from moekit.kernels.torch.experts import experts as torch_experts

Backend = Literal["fastest", "reference", "torch"]


@_disable_dynamo  # a graph of torch.compile ends here: compiled products are not for tracing
def fastest_experts(
    x_TD: Tensor, assignments: Assignments, weights: ExpertWeights, activation: Activation = SILU_GATED
) -> Tensor:
    """Compute an `ExpertsKernel`'s y_TD with products of our own where they are for it, else with torch's."""
    if fits_fused(x_TD, weights):
        return fused_experts(x_TD, assignments, weights, activation)
    return torch_experts(x_TD, assignments, weights, activation)


@_disable_dynamo
def dense_network(x_TD: Tensor, weights: ExpertWeights, activation: Activation) -> Tensor | None:
    """Compute the y_TD of one expert for all tokens; gives None where torch's own operations are as fast."""
    return fused_experts(x_TD, None, weights, activation) if fits_fused(x_TD, weights) else None


_EXPERTS: dict[Backend, ExpertsKernel] = {
    "fastest": fastest_experts,
    "reference": reference_experts,
    "torch": torch_experts,
}


def experts_kernel(backend: Backend) -> ExpertsKernel:
    """Give the function with which a backend computes experts; all of them agree to rounding.

    backend: `fastest` chooses among the others and the fused products by what the tensors are and the processor has.
    """
    return _EXPERTS[backend]
