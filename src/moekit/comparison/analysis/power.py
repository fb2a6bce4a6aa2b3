"""Which differences so many seeds would show, from the noise between seeds: the power of a comparison.

It is the probability that the interval of a difference that is there does not hold 0 (noncentral t, Johnson and Welch
1940, Applications of the non-central t-distribution), taken at four in five, as is the custom (Cohen 1988, Statistical
power analysis for the behavioral sciences).
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import nctdtrinc

from moekit.comparison.analysis.best_rival import pick_factor
from moekit.comparison.analysis.simultaneous import Figures
from moekit.comparison.verdict_schema import Check

POWER = 0.8
_MOST_SEEDS = 50


@dataclass(frozen=True, kw_only=True)
class PriorNoise:
    """Noise between seeds that was measured before: of bits per byte, contestant less baseline, one seed to another."""

    deviation: float
    size: str
    tokens: int
    source: str


# The default set, references aside, on the embedded corpus.
PRIOR = PriorNoise(
    deviation=0.0256, size="xs", tokens=204_800, source="benchmarks/results/2026-11-22-compare-default.json"
)


def paired_deviation(baseline: Figures, rivals: Mapping[str, Figures]) -> float | None:
    """Estimate how much a difference to the baseline varies from seed to seed, over rivals with two seeds or more."""
    gaps = [[figures[seed] - baseline[seed] for seed in baseline if seed in figures] for figures in rivals.values()]
    known = [gap for gap in gaps if len(gap) > 1]
    if not known:
        return None
    squares = sum((len(gap) - 1) * statistics.variance(gap) for gap in known)
    return math.sqrt(squares / sum(len(gap) - 1 for gap in known))


def visible_difference(seeds: int, deviation: float, rivals: int = 1) -> float:
    """Give the smallest difference, in bits per byte, that two seeds or more show in four of five comparisons.

    Args:
        seeds: of each contestant.
        deviation: of a difference, from seed to seed (see `paired_deviation`).
        rivals: from which the best one is picked, where none is far ahead of the others.
    """
    shift = float(nctdtrinc(seeds - 1, 1 - POWER, pick_factor(rivals, seeds)))
    return shift * deviation / math.sqrt(seeds)


def seeds_needed(difference: float, deviation: float, rivals: int = 1) -> int | None:
    """Say how many seeds show a `difference`, in bits per byte, in four of five comparisons; None for more than 50."""
    return next(
        (
            seeds
            for seeds in range(2, _MOST_SEEDS + 1)
            if visible_difference(seeds, deviation, rivals) <= abs(difference)
        ),
        None,
    )


def prior_text(size: str, tokens: int, seeds: int, corpus: str) -> str | None:
    """Say before the training what will be seen; gives None where nothing was measured that this could be held to."""
    if (size, corpus) != (PRIOR.size, "embedded") or tokens < PRIOR.tokens:
        return None
    if seeds < 2:
        return "One seed tells no noise and gives no answer; two do, three or more tell much more"
    seen = visible_difference(seeds, PRIOR.deviation)
    return (
        f"With {seeds} seeds a difference of {seen:.3f} bits per byte is seen in four of five comparisons, by the "
        f"noise that was measured after {PRIOR.tokens:,} tokens ({PRIOR.deviation:.3f} between seeds)"
    )


def power_checks(baseline: Figures, rivals: Mapping[str, Figures], difference: float) -> list[Check]:
    """Say what so many seeds would show, and how many half of that would take."""
    deviation, seeds = paired_deviation(baseline, rivals), len(baseline)
    if not deviation or seeds < 2:
        return []
    seen = visible_difference(seeds, deviation)
    needed = seeds_needed(seen / 2, deviation)
    more = f"; half of that takes {needed} seeds" if needed else ""
    text = (
        f"With {seeds} seeds, which differ by {deviation:.4f} bits per byte in what they say of a contestant and the "
        f"baseline, a difference of {seen:.3f} would be seen in four of five comparisons{more}."
    )
    return [Check(code="power", good=abs(difference) >= seen, text=text)]
