"""What it takes to reach the baseline's level: at the end of its run (a forest plot), and as the budget grows."""

import math
from collections.abc import Sequence
from typing import Literal

from moekit.comparison.analysis.baseline_comparison import REFERENCES, SHARES
from moekit.comparison.analysis.verdict_wording import reached_text
from moekit.comparison.estimates import Estimate
from moekit.comparison.report import chart_parts as parts
from moekit.comparison.report.chart_parts import Chart, Figure, Look, Variant
from moekit.comparison.report.escaping import plotly_text
from moekit.comparison.report.learning_curve_chart import AXIS_NAMES
from moekit.comparison.results_schema import Results
from moekit.comparison.verdict_schema import AgainstBaseline, Axis, Reach

_FARTHEST = 8.0
"""How many times less or more than the baseline the axis goes at most; what lies beyond stands at its edge."""
Told = Literal["reached", "more", "own level"]
"""What a ratio is of: the baseline's level; all that was spent where not every seed got there; the own final level."""
_WORDS: dict[Told, str] = {
    "reached": "",
    "more": ", or more: not every seed reached the level",
    "own level": ", at its own final level: it did not reach the baseline's",
}
_SYMBOLS: dict[Told, str | None] = {"reached": None, "more": "triangle-right", "own level": "triangle-down"}
# The axis, and how far below its row a mark stands.
_MARKS: tuple[tuple[Axis, float], ...] = (("flops", -0.16), ("seconds", 0.16))


def leverage(results: Results, against: dict[str, AgainstBaseline], looks: Sequence[Look]) -> Chart | None:
    """Draw, a row a contestant, the FLOPs and seconds to the baseline's final level over what the baseline took."""
    rows = [(look, against[look.name]) for look in looks if look.name in against and against[look.name].final.seeds]
    if not any(_told(one, axis) for _, one in rows for axis, _ in _MARKS):
        return None
    low, high = _range([one for _, one in rows])
    data = [
        _mark(look, row, aside, told, axis, (low, high))
        for row, (look, one) in enumerate(rows)
        for axis, aside in _MARKS
        if (told := _told(one, axis))
    ]
    shapes, annotations = parts.sides("cheaper", "dearer")
    layout: Figure = {
        "height": max(220, 96 + 43 * len(rows)),
        "xaxis": parts.log_axis(
            low, high, f"Over what {plotly_text(parts.short_name(results.baseline))} needed", "{:g}".format
        ),
        "yaxis": parts.rows_axis([look.name for look, _ in rows]),
        "margin": {"t": 30},
        "shapes": shapes,
        "annotations": annotations,
    }
    said = "; ".join(
        f"{look.name}: {reached_text(one, one.final, 'flops')} of the FLOPs, "
        f"{reached_text(one, one.final, 'seconds')} of the seconds"
        for look, one in rows
    )
    alt = f"Forest plot: what each contestant needed for the final level of {results.baseline}. {said}."
    caption = _caption(results.baseline, [one for _, one in rows])
    return Chart("leverage", alt, (), (Variant((), {"data": data, "layout": layout}, caption),), legend=False)


def _told(one: AgainstBaseline, axis: Axis) -> tuple[Estimate, Told] | None:
    """Give the ratio and what it is.

    Where no seed reached the level, the baseline was the better one: the ratio is then turned round, at the
    contestant's own final level.
    """
    if one.final.ratios is not None:
        return (one.final.ratios[axis], "reached") if axis in one.final.ratios else None
    if one.final.at_least is not None:
        return (one.final.at_least[axis], "more") if axis in one.final.at_least else None
    ratios = one.inverse.ratios
    if ratios is None or axis not in ratios:
        return None
    found = ratios[axis]
    low, high = 1 / found.high, 1 / max(found.low, 1 / found.high / 1e300)
    return found.model_copy(update={"mean": 1 / found.mean, "low": low, "high": high}), "own level"


def _range(rows: Sequence[AgainstBaseline]) -> tuple[float, float]:
    """Choose the ends of the axis from those that answer the question, references aside, and no farther than that."""
    answering = [one for one in rows if one.kind not in REFERENCES] or rows
    ratios = [told[0] for one in answering for axis, _ in _MARKS if (told := _told(one, axis))]
    ends = [0.8, 1.25, *(ratio.low for ratio in ratios), *(ratio.high for ratio in ratios)]
    inside = [min(max(end, 1 / _FARTHEST), _FARTHEST) for end in ends]
    return min(inside) / 1.12, max(inside) * 1.12


def _mark(
    look: Look, row: int, aside: float, told: tuple[Estimate, Told], axis: Axis, ends: tuple[float, float]
) -> Figure:
    """Draw one figure with its interval."""
    estimate, what = told
    said = f"{estimate.mean:.3g}"
    if estimate.spread != "none":
        said += f" ({estimate.low:.2f} to {estimate.high:.2f})"
    mark = parts.forest_mark(
        look,
        row + aside,
        (estimate.mean, estimate.low, estimate.high),
        ends,
        hollow=axis == "seconds",
        symbol=_SYMBOLS[what],
        interval=estimate.spread != "none" and what != "more",
    )
    mark["hovertemplate"] = f"%{{fullData.name}}, {AXIS_NAMES[axis]}{_WORDS[what]}: {said}<extra></extra>"
    return mark


def _caption(baseline: str, rows: Sequence[AgainstBaseline]) -> str:
    """Say who did not reach the level, or not in every seed."""
    said = []
    never = [one.name for one in rows if one.final.ratios is None and one.final.at_least is None]
    if never:
        said.append(
            f"Not reached by {', '.join(never)}: ▾ is what such a contestant needed for its own final level, over what "
            f"{baseline} needed for that."
        )
    some = [
        f"{one.name} in {one.final.reached} of {one.final.seeds} seeds"
        for one in rows
        if one.final.at_least is not None
    ]
    if some:
        said.append(f"Reached by {', '.join(some)} alone: ▸ is what was spent, and it takes more.")
    free = [one.name for one in rows if one.flops == 0]
    if free:
        said.append(f"Without FLOPs: {', '.join(free)}.")
    return " ".join(said)


def budget(results: Results, against: dict[str, AgainstBaseline], looks: Sequence[Look]) -> Chart | None:
    """Draw what each contestant needs for the baseline's level, over what the baseline needs, at growing budgets."""
    if not any(reach.ratios for one in against.values() for reach in one.reach):
        return None
    rivals = [look for look in looks if look.name in against]
    variants = tuple(Variant((name,), _budget_figure(rivals, against, axis)) for axis, name in AXIS_NAMES.items())
    alt = "Line chart: what each contestant needed to reach the baseline's level, at four budgets of the baseline."
    return Chart("budget", alt, (("Counted in", tuple(AXIS_NAMES.values())),), variants)


def _budget_figure(rivals: Sequence[Look], against: dict[str, AgainstBaseline], axis: Axis) -> Figure:
    data: list[Figure] = []
    ends = [0.8, 1.25]
    for place, look in enumerate(rivals):
        estimates = [
            (reach, reach.ratios[axis])
            for reach in against[look.name].reach
            if reach.ratios is not None and axis in reach.ratios
        ]
        aside = (place - (len(rivals) - 1) / 2) * 1.1
        means = [estimate.mean for _, estimate in estimates]
        lows = [max(estimate.low, 0.1 / _FARTHEST) for _, estimate in estimates]
        highs = [min(estimate.high, 10 * _FARTHEST) for _, estimate in estimates]
        ends += [end for end in (*lows, *highs) if 1 / _FARTHEST <= end <= _FARTHEST]
        data.append(_budget_trace(look, aside, [reach for reach, _ in estimates], means, lows, highs))
    ticks = [100 * share for share in SHARES]
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "title": {"text": f"Share of the baseline's run, in {AXIS_NAMES['tokens'].lower()}"},
                "tickvals": ticks,
                "ticktext": [f"{tick:.0f} %" for tick in ticks],
                "range": [15, 110],
                "showgrid": False,
            },
            "yaxis": parts.log_axis(min(ends) / 1.1, max(ends) * 1.1, "Over what the baseline needed", "{:g}".format),
            "shapes": [parts.level(1)],
            "annotations": [parts.level_label(math.log10(1), "as much as the baseline")],
        },
    }


def _budget_trace(
    look: Look,
    aside: float,
    reaches: Sequence[Reach],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
) -> Figure:
    trace = parts.line(
        look,
        (100 * reach.share + aside for reach in reaches),
        means,
        ": %{y:.2f}<br>reached by %{customdata} seeds",
        width=2,
    )
    trace["mode"] = "lines+markers"
    trace["marker"] = {"color": look.colour, "size": 8, "symbol": look.symbol}
    trace["customdata"] = [f"{reach.reached} of {reach.seeds}" for reach in reaches]
    if list(lows) != list(highs):
        trace["error_y"] = parts.intervals(means, lows, highs, look.colour)
    return trace
