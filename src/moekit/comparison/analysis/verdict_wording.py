"""Figures and their uncertainty as the verdict, the summary and the report write them."""

from collections.abc import Sequence

from moekit.comparison.analysis.baseline_comparison import AgainstBaseline, Reach
from moekit.comparison.analysis.estimates import Estimate
from moekit.comparison.analysis.learning_curves import Axis

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
    if reach.ratios is None:
        return "not reached"
    if axis not in reach.ratios:
        return "none" if one.flops == 0 else NONE
    text = ratio_text(reach.ratios[axis])
    return text if reach.reached == reach.seeds else f"{text}, {reach.reached} of {reach.seeds} seeds"


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


def interval_text(difference: Estimate) -> str:
    """Write the interval in brackets, with the seeds; signed where the sign of the difference is not settled."""
    if difference.spread == "none":
        return " (one seed)"
    if difference.side(0.0) == 0:
        span = f"{signed(difference.low)} to {signed(difference.high)}"
    else:
        span = "{:.3f} to {:.3f}".format(*sorted((abs(difference.low), abs(difference.high))))
    what = f"95 % interval {span}, " if difference.spread == "interval" else f"{span} in "
    return f" ({what}{seeds_text(difference.seeds)})"


def bracket_text(estimate: Estimate) -> str:
    """Write ` (0.41–0.53)`; nothing for one seed."""
    return "" if estimate.spread == "none" else f" ({estimate.low:.2f}–{estimate.high:.2f})"


def times_text(ratio: float, noun: str) -> str:
    """Write `0.47 of the FLOPs` or `1.20 times the FLOPs`."""
    return f"{ratio:.2f} {'of' if ratio < 0.995 else 'times'} {noun}"


def listed(parts: Sequence[str]) -> str:
    """Write `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
