"""Figures and their uncertainty as the verdict, the summary and the report write them."""

from collections.abc import Sequence

from moekit.comparison.estimates import Estimate
from moekit.comparison.verdict_schema import AgainstBaseline, Axis, Reach, TextSpread

NONE = "–"


def ratio_text(estimate: Estimate | None, digits: int = 2) -> str:
    """Write `0.47 (0.41–0.53)`; the mean alone for one seed."""
    if estimate is None:
        return NONE
    if estimate.spread == "none":
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def reached_text(one: AgainstBaseline, reach: Reach, axis: Axis) -> str:
    """Say what it took to reach a level, over what the baseline took; `none` where it multiplies nothing."""
    if not reach.seeds:
        return NONE
    ratios = reach.ratios or reach.at_least
    if ratios is None:
        return "not reached"
    if axis not in ratios:
        return "none" if one.flops == 0 else NONE
    if reach.ratios is None:
        return f"over {ratios[axis].mean:.2f}, {reach.reached} of {reach.seeds} seeds"
    return ratio_text(ratios[axis])


def signed(value: float, digits: int = 3) -> str:
    """Write `+0.012` or `−0.012`, with a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def seeds_text(count: int) -> str:
    """Write `1 seed`, `3 seeds`."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def runs_text(count: int) -> str:
    """Write `1 run`, `3 runs`."""
    return f"{count} run" if count == 1 else f"{count} runs"


def gap_text(difference: Estimate) -> str:
    """Write `0.012 bits per byte below`."""
    return f"{abs(difference.mean):.3f} bits per byte {'below' if difference.mean <= 0 else 'above'}"


def interval_text(difference: Estimate, text: TextSpread | None = None) -> str:
    """Write the interval in brackets, with the seeds, and the one of `text` where that is known."""
    seeds = "one seed"
    if difference.spread == "interval":
        seeds = f"95 % interval {_span(difference.low, difference.high)}, {seeds_text(difference.seeds)}"
    return f" ({seeds}{f'; {_span(text.low, text.high)} by the text alone' if text else ''})"


def _span(low: float, high: float) -> str:
    """Write `0.003 to 0.012`, the smaller first; signed where the sign of the difference is not settled."""
    if low <= 0 <= high:
        return f"{signed(low)} to {signed(high)}"
    return "{:.3f} to {:.3f}".format(*sorted((abs(low), abs(high))))


def bracket_text(estimate: Estimate) -> str:
    """Write ` (0.41–0.53)`; nothing for one seed."""
    return "" if estimate.spread == "none" else f" ({estimate.low:.2f}–{estimate.high:.2f})"


def times_text(ratio: float, noun: str) -> str:
    """Write `0.47 of the FLOPs` or `1.20 times the FLOPs`."""
    return f"{ratio:.2f} {'of' if ratio < 0.995 else 'times'} {noun}"


def listed(parts: Sequence[str]) -> str:
    """Write `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
