"""What a router did, in a handful of figures, from the sums of its Routing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from moekit.moe.routing import Sums


@dataclass(frozen=True, kw_only=True)
class RoutingStats:
    """What the router of one MoE layer did with some tokens, padding left out.

    Attributes:
        load_max_over_mean: the largest over the mean number of tokens that chose an expert: 1 is even, E / K or more a
            collapse.
        load_entropy: the entropy of the experts' shares of the choices, divided by log E: 1 is even, 0 is one expert
            for all.
        dead_experts: how many experts computed nothing.
        dropped_share: the share of the choices that a capacity dropped.
        mean_top_score: the mean over tokens of the largest score (the router's confidence).
        logit_norm: the root mean square over tokens of the norm of the router's logits.
    """

    load_max_over_mean: float
    load_entropy: float
    dead_experts: int
    dropped_share: float
    mean_top_score: float
    logit_norm: float


def add_sums(parts: Iterable[Sums]) -> dict[str, Tensor]:
    """Add up the sums of a batch's parts (micro-batches, or ranks) into new tensors without gradient."""
    total: dict[str, Tensor] = {}
    for sums in parts:
        for name, value in sums.items():
            total[name] = total[name] + value.detach() if name in total else value.detach().clone()
    return total


def routing_stats(sums: Sums) -> RoutingStats:
    """Compute the figures of one layer from its sums, which need at least one token."""
    # Python's numbers: for so few of them, a call of torch each would take longer than all the arithmetic.
    chosen_E, computed_E = sums["chosen"].tolist(), sums["computed"].tolist()
    chosen = max(1.0, float(sum(chosen_E)))
    share_E = [count / chosen for count in chosen_E]
    experts = len(share_E)
    tokens = max(1.0, float(sums["tokens"]))
    return RoutingStats(
        load_max_over_mean=max(share_E) * experts,
        # A single expert is even by definition, and log 1 would divide by zero.
        load_entropy=-sum(p * math.log(p) for p in share_E if p) / math.log(experts) if experts > 1 else 1.0,
        dead_experts=computed_E.count(0),
        dropped_share=1 - sum(computed_E) / chosen,
        mean_top_score=float(sums["top_score"]) / tokens,
        logit_norm=math.sqrt(float(sums["logit_squares"]) / tokens),
    )


def collapse_text(stats: RoutingStats, *, experts: int, experts_per_token: int) -> str | None:
    """Say in words what is wrong with a layer; None where it is well.

    A layer has collapsed where more than half of its experts compute nothing, or one takes nearly every token.
    """
    if 2 * stats.dead_experts > experts:
        return f"{stats.dead_experts} of {experts} experts get no tokens"
    if experts > experts_per_token and stats.load_max_over_mean >= 0.9 * experts / experts_per_token:
        share = stats.load_max_over_mean * experts_per_token / experts
        return f"one expert of {experts} is chosen by {share:.0%} of the tokens"
    return None
