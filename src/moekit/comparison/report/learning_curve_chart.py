"""The chart at the top: held-out bits per byte of each contestant while it trains."""

import math
from collections.abc import Sequence

from moekit.comparison.analysis.baseline_comparison import REFERENCES, finished, kind_of
from moekit.comparison.estimates import Estimate
from moekit.comparison.report import chart_parts as parts
from moekit.comparison.report.chart_parts import Chart, End, Figure, Look, Variant
from moekit.comparison.results_schema import ContestantResults, CurvePoint, Results
from moekit.comparison.verdict_schema import Axis
from moekit.core.formatting import duration_text

AXIS_NAMES: dict[Axis, str] = {"flops": "FLOPs", "seconds": "Seconds", "tokens": "Tokens"}
_TITLES: dict[Axis, str] = {
    "flops": "Training FLOPs",
    "seconds": "Seconds in training steps",
    "tokens": "Training tokens",
}
_VIEWS = ("End of the run", "Whole run")
_END = 0.25
"""The share of its tokens after which the end of a run begins: the last two doublings."""


def learning_curves(results: Results, looks: Sequence[Look]) -> Chart | None:
    """Draw each contestant's mean over FLOPs, seconds and tokens, with the interval over its seeds as a band."""
    drawn = [(look, one) for look, one in zip(looks, results.contestants, strict=True) if _points(one)]
    if not drawn:
        return None
    variants = [_variant(results, drawn, axis, whole=view == _VIEWS[1]) for axis in AXIS_NAMES for view in _VIEWS]
    ends = ", ".join(f"{one.name} {one.bits_per_byte:.3f}" for one in results.contestants if one.bits_per_byte)
    alt = f"Line chart: held-out bits per byte of each contestant while it trains. They end at: {ends}."
    choices = (("Over", tuple(AXIS_NAMES.values())), ("View", _VIEWS))
    return Chart("curves", alt, choices, tuple(variants))


def _points(contestant: ContestantResults) -> list[CurvePoint]:
    return [point for point in contestant.curve if math.isfinite(point.bits_per_byte)]


def _variant(results: Results, drawn: Sequence[tuple[Look, ContestantResults]], axis: Axis, *, whole: bool) -> Variant:
    data: list[Figure] = []
    lines: list[tuple[Look, ContestantResults, list[CurvePoint]]] = []
    for look, contestant in drawn:
        points = [point for point in _points(contestant) if getattr(point, axis) > 0]
        if points:
            lines.append((look, contestant, points))
            data += _traces(look, contestant, points, axis)
    # The counted ones stand aside: over FLOPs they have no line, and after a second all theirs is said.
    trained = [(one, points) for _, one, points in lines if one.flops_per_token] or [(o, p) for _, o, p in lines]
    if not trained:
        return Variant((AXIS_NAMES[axis], _VIEWS[whole]), {"data": data, "layout": {}})
    low_x, high_x, low_y, high_y = _window(trained, axis, whole=whole)
    ends = [End(look, getattr(points[-1], axis), points[-1].bits_per_byte) for look, _, points in lines]
    high_x = parts.room_for_labels(ends, low_x, high_x)
    bars = _bars(results, drawn)
    low_y = _down_to_bars(low_y, high_y, [level for _, level, _ in bars])
    x_axis = parts.log_axis(low_x, high_x, _TITLES[axis], duration_text if axis == "seconds" else parts.unit_text)
    y_axis = parts.log_axis(low_y, high_y, "Held-out bits per byte", "{:g}".format)
    seen = [bar for bar in bars if low_y <= bar[1] <= high_y]
    layout = {
        "height": 410,
        "xaxis": x_axis,
        "yaxis": y_axis,
        "shapes": [parts.level(level) | _of(look) for _, level, look in seen],
        "annotations": [
            *(
                parts.level_label(math.log10(level), text, left=look is not None) | _of(look)
                for text, level, look in seen
            ),
            *parts.end_labels(ends, x_axis["range"], y_axis["range"]),
        ],
    }
    caption = _caption(results, bars, low_y, [(one, points[-1]) for _, one, points in lines], high_y, axis)
    return Variant((AXIS_NAMES[axis], _VIEWS[whole]), {"data": data, "layout": layout}, caption)


def _traces(look: Look, contestant: ContestantResults, points: list[CurvePoint], axis: Axis) -> list[Figure]:
    """Draw the mean, and behind it, where there are several seeds, their interval at each point."""
    x = [getattr(point, axis) for point in points]
    mean = parts.line(look, x, [point.bits_per_byte for point in points], "<br>%{x:.3s}: %{y:.3f}")
    by_step: dict[int, list[float]] = {point.step: [] for point in points}
    for run in finished(contestant):
        for point in run.curve:
            if point.step in by_step and math.isfinite(point.bits_per_byte):
                by_step[point.step].append(point.bits_per_byte)
    estimates = [Estimate.of(by_step[point.step]) for point in points]
    spans = [
        (at, estimate.low, estimate.high)
        for at, estimate in zip(x, estimates, strict=True)
        if estimate is not None and estimate.spread != "none"
    ]
    if not spans:
        return [mean]
    at, low, high = zip(*spans, strict=True)
    # Bits per byte are above 0, and so is what a logarithmic axis can show.
    return [parts.band(look, at, [max(value, 1e-3) for value in low], high), mean]


def _window(
    trained: Sequence[tuple[ContestantResults, list[CurvePoint]]], axis: Axis, *, whole: bool
) -> tuple[float, float, float, float]:
    """Choose what the axes show, from and to: all of it, or of what answers the question the end."""
    answering = [pair for pair in trained if kind_of(pair[0].config) not in REFERENCES] or list(trained)
    shown = [
        point
        for _, points in (trained if whole else answering)
        for point in points
        if whole or point.tokens >= points[-1].tokens * _END * 0.999
    ]
    x, y = [getattr(point, axis) for point in shown], [point.bits_per_byte for point in shown]
    return min(x) * 0.97, max(x) * 1.03, min(y) * 0.985, max(y) * 1.015


def _bars(results: Results, drawn: Sequence[tuple[Look, ContestantResults]]) -> list[tuple[str, float, Look | None]]:
    """List what a model must get below: byte frequencies, and where each contestant that only counts ends."""
    found: list[tuple[str, float, Look | None]] = []
    if results.corpus.unigram_bits_per_byte > 0:
        found.append(("byte frequencies alone", results.corpus.unigram_bits_per_byte, None))
    for look, one in drawn:
        if not one.flops_per_token:
            found.append((f"{parts.short_name(look.name)}, at its end", _points(one)[-1].bits_per_byte, look))
    return found


def _of(look: Look | None) -> Figure:
    """Say whose a bar is, so that it goes where the legend hides its contestant."""
    return {} if look is None else {"meta": look.index}


def _down_to_bars(low: float, high: float, levels: Sequence[float]) -> float:
    """Let the axis reach down to bars that are no further below it than it is high; the others the caption names."""
    near = [level * 0.985 for level in levels if low * low / high <= level * 0.985 < low]
    return min([low, *near])


def _caption(
    results: Results,
    bars: Sequence[tuple[str, float, Look | None]],
    low: float,
    ends: Sequence[tuple[ContestantResults, CurvePoint]],
    high: float,
    axis: Axis,
) -> str:
    """Name what has no line, and what lies outside of the view."""
    said = []
    free = [one.name for one in results.contestants if one.curve and not one.flops_per_token]
    if axis == "flops" and free:
        said.append(f"Without FLOPs, and so without a line: {', '.join(free)}.")
    above = [f"{one.name} ({point.bits_per_byte:.3f})" for one, point in ends if point.bits_per_byte > high]
    if above:
        said.append(f"Above this view: {', '.join(above)}.")
    below = [f"{text} ({level:.3f})" for text, level, _ in bars if level < low]
    if below:
        said.append(f"Below this view: {', '.join(below)}.")
    return " ".join(said)
