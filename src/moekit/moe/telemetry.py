"""What a router did, in a handful of figures."""

from dataclasses import dataclass

import torch

from moekit.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class RoutingStats:
    """One MoE layer over some tokens.

    load_max_over_mean: of assignments per expert: 1 is even, E / K or more a collapse.
    load_entropy: of the experts' shares of the assignments, divided by log E: 1 is even, 0 is one expert for all.
    dead_experts: those without any assignment. mean_top_weight: mean over tokens of the largest probability.
    """

    load_max_over_mean: float
    load_entropy: float
    dead_experts: int
    mean_top_weight: float


def routing_stats(routings: list[Routing]) -> RoutingStats:
    """The figures of one layer over all tokens of `routings` (one Routing a batch); needs at least one token."""
    counts_E = torch.stack([routing.counts_E for routing in routings]).sum(0).double()
    share_E = counts_E / counts_E.sum().clamp(min=1)
    experts = share_E.numel()
    # A single expert is even by definition, and log 1 would divide by zero.
    entropy = float(torch.special.entr(share_E).sum()) / torch.tensor(experts).log().item() if experts > 1 else 1.0
    top_weights = torch.cat([routing.probs_TE.detach().amax(-1) for routing in routings])
    return RoutingStats(
        load_max_over_mean=float(share_E.max()) * experts,
        load_entropy=entropy,
        dead_experts=int((counts_E == 0).sum()),
        mean_top_weight=float(top_weights.mean()),
    )
