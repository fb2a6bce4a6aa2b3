"""The search for each contestant's learning rate: which rates are tried, and the comparison in which they are.

The trials are contestants of a comparison of their own: each contestant once for each rate, in a run of the length that
the comparison's own runs get, with a seed that none of those has.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moekit.comparison.spec.comparison_plan import LEARNING_RATE_FORMULA
from moekit.config import NGramConfig

if TYPE_CHECKING:
    from moekit.comparison.spec.comparison_plan import ComparisonPlan, PlannedContestant

FACTORS = (0.25, 0.5, 1.0, 2.0)
"""The rates that are tried, over what the rule gives the contestant."""

TUNED_TEXT = (
    "searched for each contestant: the best of "
    + ", ".join(f"{factor:g}" for factor in FACTORS)
    + f" times {LEARNING_RATE_FORMULA}, by the held-out bits per byte of one run each, with a seed of its own"
)

# A comparison's own seeds count from 0.
_SEED = 1_000_000


def learns(entry: "PlannedContestant") -> bool:
    """Tell whether the contestant has a learning rate: an n-gram model is counted."""
    return not isinstance(entry.config, NGramConfig)


def trial_name(contestant: str, factor: float) -> str:
    """Name the trial of a contestant at that factor of the rule's rate."""
    return f"{contestant}.x{factor:g}"


def trials_plan(plan: "ComparisonPlan") -> "ComparisonPlan":
    """Plan the comparison of all trials, with the share of the budget that its runs take of all runs."""
    trials = tuple(
        entry.model_copy(update={"name": trial_name(entry.name, factor), "rate_factor": factor * entry.rate_factor})
        for entry in plan.contestants
        if learns(entry)
        for factor in FACTORS
    )
    share = len(FACTORS) / (len(FACTORS) + len(plan.seeds))
    optional = tuple(trial_name(name, factor) for name in plan.optional for factor in FACTORS)
    return plan.model_copy(
        update={
            "contestants": trials,
            "optional": optional,
            "baseline": trials[0].name,
            "seeds": (_SEED,),
            "budget_seconds": None if plan.budget_seconds is None else plan.budget_seconds * share,
            "tune": False,
        }
    )


def with_rates(plan: "ComparisonPlan", bits_per_byte: Mapping[str, float | None]) -> "ComparisonPlan":
    """Give the plan in which each contestant has the rate of its best trial.

    Optional contestants that had no trial, because the budget had no room for them, are left out; one whose trials all
    failed keeps the rule's rate.

    Args:
        plan: of the comparison, whose rates are the rule's.
        bits_per_byte: the final figure of each trial, by name; None where it failed.
    """
    entries = []
    for entry in plan.contestants:
        tried = {
            factor: bits_per_byte[name]
            for factor in FACTORS
            if (name := trial_name(entry.name, factor)) in bits_per_byte
        }
        if not tried and entry.name in plan.optional and learns(entry):
            continue
        figures = {factor: bits for factor, bits in tried.items() if bits is not None}
        best = min(figures, key=lambda factor: figures[factor]) if figures else 1.0
        entries.append(entry.model_copy(update={"rate_factor": best * entry.rate_factor}))
    return plan.model_copy(update={"contestants": tuple(entries), "optional": ()})
