"""Routing is data: what a router decided for T tokens and E experts, whichever router it was."""

from dataclasses import dataclass

from torch import Tensor

from moekit.kernels import Assignments


@dataclass(frozen=True, kw_only=True)
class Routing:
    """One MoE layer's decision on T tokens (all sequences of the batch, one after the other).

    assignments: S (token, weight) pairs grouped by expert: all that experts and dispatch need.
    probs_TE: the router's probabilities, fp32. counts_E: int64, assignments per expert.
    losses: auxiliary losses by name, scalars, already multiplied by their coefficients.
    """

    assignments: Assignments
    probs_TE: Tensor
    counts_E: Tensor
    losses: dict[str, Tensor]
