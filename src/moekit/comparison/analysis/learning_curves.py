"""How far one learning curve is ahead of another.

A curve is measured at a few points. Between two of them bits per byte is taken as linear in the logarithm of the
tokens (likewise of FLOPs and seconds), which is close to how such curves bend. "Reached" means the first crossing,
for both sides of every comparison, so that a curve that wobbles gains nothing against one that does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moekit.comparison.results_schema import CurvePoint
from moekit.comparison.verdict_schema import Axis

AXES: tuple[Axis, ...] = ("tokens", "flops", "seconds")


def first_reach(curve: Sequence[CurvePoint], level: float) -> dict[Axis, float] | None:
    """Find the tokens, FLOPs and seconds after which `curve` is first at or below `level` bits per byte.

    Gives None where it never is. A curve that starts below the level gives its first point, then an upper bound.
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
    """Give bits per byte after `share` (0 to 1] of the curve's tokens; None where the curve does not cover it."""
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


@dataclass(frozen=True)
class ReachRatios:
    """What a curve took to a level of another's, over what that one took.

    ratios: by axis, below 1 where the curve was cheaper, without an axis on which one of the two spends nothing, as an
    n-gram model spends no FLOPs. reached: whether the curve came down to the level; where it did not, all that it spent
    stands in place of what it would have needed, so that the truth is more.
    """

    ratios: dict[Axis, float]
    reached: bool


def reach_ratios(
    curve: Sequence[CurvePoint], baseline: Sequence[CurvePoint], share: float = 1.0, shift: float = 0.0
) -> ReachRatios | None:
    """Say what `curve` took to the level of `baseline` at `share` of its tokens; None where that is not known.

    Args:
        curve: of the contestant.
        baseline: the baseline's.
        share: 0 to 1.
        shift: bits per byte by which that level lies higher in the contestant's curve.
    """
    level = level_at(baseline, share)
    own = first_reach(baseline, level) if level is not None else None
    if level is None or own is None or not curve:
        return None
    reached = first_reach(curve, level + shift)
    spent = reached or {axis: float(getattr(curve[-1], axis)) for axis in AXES}
    ratios = {axis: spent[axis] / own[axis] for axis in AXES if min(own[axis], spent[axis]) > 0}
    return ReachRatios(ratios, reached is not None)


def _between(low: float, high: float, way: float) -> float:
    """Give the point `way` (0 to 1) from `low` to `high`, on a logarithmic scale where both are positive."""
    if low <= 0 or high <= 0:
        return low + way * (high - low)
    return math.exp(math.log(low) + way * (math.log(high) - math.log(low)))
