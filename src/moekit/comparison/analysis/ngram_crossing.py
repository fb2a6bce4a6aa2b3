"""At which budget a transformer's curve comes below the n-gram model's: predicted from their tails.

Over its later part each curve is taken as a power law of the tokens, bits = floor + scale · tokens^-exponent
(Hestness et al. 2017, arXiv 1712.00409). The floor is not known from one curve: several are tried, and the interval
covers what they and the seeds say. A prediction further than `FARTHEST` times the run's own tokens is not given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moekit.comparison.analysis.baseline_comparison import finished, kind_of
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults, CurvePoint, Results
from moekit.comparison.verdict_schema import Check

FARTHEST = 30.0
_TAIL = 0.2  # of the tokens: from there on the warm-up is forgotten
_LEAST_POINTS = 4
_FLOORS = (0.0, 0.3, 0.6)  # of the last figure: none, and what leaves little to be learned


@dataclass(frozen=True)
class Crossing:
    """When a contestant comes below the n-gram model.

    tokens, flops, seconds: of its training by then, the middle of what seeds and floors say; None where it is beyond
    `FARTHEST` times its tokens, or never. low, high: tokens, from the least to the most; high is None where some seed
    or floor says beyond. measured: whether it came below within its run.
    """

    name: str
    tokens: float | None
    flops: float | None
    seconds: float | None
    low: float | None
    high: float | None
    measured: bool


def ngram_crossings(results: Results) -> list[Crossing]:
    """Say of each trained contestant without a caveat when it comes below the n-gram model; nothing without one."""
    counted = next((one for one in results.contestants if kind_of(one.config) == "ngram" and finished(one)), None)
    if counted is None:
        return []
    rivals = [one for one in results.contestants if one is not counted and not one.caveat]
    return [found for one in rivals if (found := _crossing(one, counted)) is not None]


def crossing_checks(results: Results) -> list[Check]:
    """Say who ends below the n-gram model, or at which budget it would; nothing where there is no such model."""
    text = crossing_text(results)
    good = any(one.measured for one in ngram_crossings(results) if _is_transformer(results, one.name))
    return [Check(code="ngram_crossing", good=good, text=text)] if text else []


def crossing_text(results: Results) -> str | None:
    """Write a sentence on who ends below the n-gram model, or at which budget it would."""
    crossings = [one for one in ngram_crossings(results) if _is_transformer(results, one.name)]
    if not crossings:
        return None
    below = [f"`{one.name}`" for one in crossings if one.measured]
    ahead = sorted((one for one in crossings if not one.measured and one.tokens), key=lambda one: one.tokens or 0.0)
    said = [f"below the n-gram model within this run: {', '.join(below)}"] if below else []
    if ahead:
        first = ahead[0]
        most = f"{first.high:.3g}" if first.high else f"more than {FARTHEST:.0f} times this run"
        than = "it" if below else "the n-gram model"
        said.append(
            f"in a longer run the first to come below {than} would be `{first.name}`, after {first.tokens:.3g} tokens "
            f"({first.low:.3g} to {most}), {first.flops:.3g} FLOPs and {first.seconds:.3g} seconds of training, by the "
            "tails of their curves"
        )
    if not said:
        return f"No transformer comes below the n-gram model within {FARTHEST:.0f} times this run's tokens."
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _is_transformer(results: Results, name: str) -> bool:
    return any(one.name == name and kind_of(one.config) in ("dense", "moe", "hybrid") for one in results.contestants)


def _crossing(one: ContestantResults, counted: ContestantResults) -> Crossing | None:
    others = {run.seed: run for run in finished(counted)}
    pairs = [(run.curve, others[run.seed].curve) for run in finished(one) if run.seed in others]
    pairs = [(curve, other) for curve, other in pairs if len(_tail(curve)) >= _LEAST_POINTS <= len(_tail(other))]
    if not pairs:
        return None
    last = pairs[0][0][-1]
    passed = [first for curve, other in pairs if (first := _first_below(curve, other)) is not None]
    if len(passed) == len(pairs):
        estimate = Estimate.of_ratios(passed)
        assert estimate is not None
        return _at(one.name, last, estimate.mean, min(passed), max(passed), measured=True)
    found = [
        _meeting(curve, other, floor * curve[-1].bits_per_byte, floor_of_other * other[-1].bits_per_byte)
        for curve, other in pairs
        for floor in _FLOORS
        for floor_of_other in _FLOORS
    ]
    known = sorted(tokens for tokens in found if tokens is not None)
    if 2 * len(known) <= len(found):
        return Crossing(one.name, None, None, None, known[0] if known else None, None, measured=False)
    middle = known[len(found) // 2]
    return _at(one.name, last, middle, known[0], known[-1] if len(known) == len(found) else None, measured=False)


def _at(name: str, last: CurvePoint, tokens: float, low: float, high: float | None, *, measured: bool) -> Crossing:
    """Say what so many tokens cost, at the rate of the run."""
    share = tokens / last.tokens
    return Crossing(name, tokens, share * last.flops, share * last.seconds, low, high, measured=measured)


def _tail(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    return [
        point
        for point in curve
        if point.tokens >= _TAIL * curve[-1].tokens and point.tokens > 0 and math.isfinite(point.bits_per_byte)
    ]


def _first_below(curve: Sequence[CurvePoint], other: Sequence[CurvePoint]) -> float | None:
    """Find the tokens after which `curve` is below `other`, and stays so to its end."""
    levels = {point.tokens: point.bits_per_byte for point in other}
    below = None
    for point in curve:
        if point.tokens in levels:
            is_below = point.bits_per_byte < levels[point.tokens]
            below = (below or float(point.tokens)) if is_below else None
    return below


def _meeting(
    curve: Sequence[CurvePoint], other: Sequence[CurvePoint], floor: float, floor_of_other: float
) -> float | None:
    """Find where the power laws of both tails meet, in tokens; None where that is beyond `FARTHEST` times the run."""
    tokens = np.geomspace(curve[-1].tokens, FARTHEST * curve[-1].tokens, 400)
    gap = _law(curve, floor, tokens) - _law(other, floor_of_other, tokens)
    met = np.flatnonzero(gap < 0)
    return float(tokens[met[0]]) if met.size else None


def _law(curve: Sequence[CurvePoint], floor: float, tokens: np.ndarray) -> np.ndarray:
    """Fit the power law above `floor` to the curve's tail, by least squares of logarithms, and give it at `tokens`."""
    tail = _tail(curve)
    x = np.log([point.tokens for point in tail])
    y = np.log([max(point.bits_per_byte - floor, 1e-6) for point in tail])
    slope, start = np.polyfit(x, y, 1)
    law: np.ndarray = floor + np.exp(start + slope * np.log(tokens))
    return law
