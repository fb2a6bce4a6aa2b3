"""How far one learning curve is ahead of another, and how sure several seeds make us of it.

A curve is measured at a few points. Between two of them bits per byte is taken as linear in the logarithm of the
tokens (likewise of FLOPs and seconds), which is close to how such curves bend. "Reached" means the first crossing,
for both sides of every comparison, so that a curve that wobbles gains nothing against one that does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from moekit.comparison.results_schema import CurvePoint

Axis = Literal["tokens", "flops", "seconds"]
AXES: tuple[Axis, ...] = ("tokens", "flops", "seconds")

# two-sided 95 % points of Student's t for 2 to 10 degrees of freedom
_T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and how far it can be trusted.

    spread: `interval`, the 95 % t-interval of the mean (three seeds or more); `range`, the smallest and the
    largest value (two seeds); `none` (one seed): `low` and `high` are then the mean itself and say nothing.
    """

    mean: float
    low: float
    high: float
    seeds: int
    spread: Literal["interval", "range", "none"]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """From one value a seed, by arithmetic mean; None where there is no value."""
        count = len(values)
        if count == 0:
            return None
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, mean, mean, 1, "none")
        if count == 2:
            return cls(mean, min(values), max(values), 2, "range")
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        half = student_t95(count - 1) * deviation / math.sqrt(count)
        return cls(mean, mean - half, mean + half, count, "interval")

    @classmethod
    def of_ratios(cls, values: Sequence[float]) -> Self | None:
        """The same on the logarithms (the mean is geometric): a ratio and its inverse then tell the same story."""
        if any(value <= 0 for value in values):
            return cls.of(values)
        logs = cls.of([math.log(value) for value in values])
        if logs is None:
            return None
        return cls(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.seeds, logs.spread)

    def side(self, of: float) -> int:
        """-1 or 1 where all of the interval (or range) lies below or above `of`; 0 where it holds it."""
        return -1 if self.high < of else 1 if self.low > of else 0


def student_t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t with `freedom` >= 2 degrees; beyond 10 by its expansion, to 0.1 %."""
    if freedom in _T95:
        return _T95[freedom]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def first_reach(curve: Sequence[CurvePoint], level: float) -> dict[Axis, float] | None:
    """Tokens, FLOPs and seconds after which `curve` is first at or below `level` bits per byte; None: it never is.

    A curve that starts below the level gives its first point, which is then an upper bound.
    """
    before: CurvePoint | None = None
    for point in curve:
        if not math.isfinite(point.bits_per_byte):
            continue
        if point.bits_per_byte <= level:
            if before is None:
                return {axis: float(getattr(point, axis)) for axis in AXES}
            way = (before.bits_per_byte - level) / (before.bits_per_byte - point.bits_per_byte)
            return {axis: _between(getattr(before, axis), getattr(point, axis), way) for axis in AXES}
        before = point
    return None


def level_at(curve: Sequence[CurvePoint], share: float) -> float | None:
    """Bits per byte after `share` (0 to 1] of the curve's tokens; None where the curve does not cover it."""
    points = [point for point in curve if math.isfinite(point.bits_per_byte)]
    if not points or not curve or points[-1] is not curve[-1]:
        return None
    if share >= 1:
        return points[-1].bits_per_byte  # exactly, so that the curve itself reaches it
    tokens = share * points[-1].tokens
    before = points[0]
    if tokens < before.tokens:
        return None
    for point in points[1:]:
        if tokens <= point.tokens:
            if before.tokens > 0 and point.tokens > before.tokens:
                way = math.log(tokens / before.tokens) / math.log(point.tokens / before.tokens)
            else:
                way = (tokens - before.tokens) / max(1, point.tokens - before.tokens)
            return before.bits_per_byte + way * (point.bits_per_byte - before.bits_per_byte)
        before = point
    return before.bits_per_byte


def reach_ratios(
    curve: Sequence[CurvePoint], baseline: Sequence[CurvePoint], share: float = 1.0
) -> dict[Axis, float] | None:
    """What `curve` needed for the level of `baseline` at `share` of its tokens, over what `baseline` needed for it.

    Returns a ratio an axis (below 1: `curve` was cheaper), without an axis on which one of the two spends nothing, as
    an n-gram model spends no FLOPs; None where `curve` never reached the level or `baseline` does not say what it is.
    """
    level = level_at(baseline, share)
    if level is None:
        return None
    own, other = first_reach(baseline, level), first_reach(curve, level)
    if own is None or other is None or own["tokens"] <= 0:
        return None
    return {axis: other[axis] / own[axis] for axis in AXES if min(own[axis], other[axis]) > 0}


def _between(low: float, high: float, way: float) -> float:
    """The point `way` (0 to 1) from `low` to `high`, on a logarithmic scale where both are positive."""
    if low <= 0 or high <= 0:
        return low + way * (high - low)
    return math.exp(math.log(low) + way * (math.log(high) - math.log(low)))
