"""The charts of a ladder: loss against FLOPs with the laws through it, and leverage, within the ladder and beyond."""

import math
from collections.abc import Sequence

from moekit.comparison.ladder.ladder_answer import at_decade
from moekit.comparison.ladder.ladder_schema import ContestantLadder, LadderResults, LeveragePoint, LossPoint
from moekit.comparison.report import chart_parts as parts
from moekit.comparison.report.chart_parts import Chart, End, Figure, Look, Variant
from moekit.comparison.report.escaping import plotly_text

_FLOPS = "Training FLOPs"
_LADDER, _BEYOND, _ALL = "The ladder", "And beyond", "All, by the ladder"
_LAW_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
_HIGHEST = 12.0
"""The most leverage that the axis shows: a law far outside of its range says more."""


def losses(results: LadderResults, looks: Sequence[Look]) -> Chart:
    """Draw bits per byte of every rung over FLOPs, the laws through them, and the largest rung as it was predicted."""
    variants = tuple(
        Variant((view,), _loss_figure(results, looks, beyond=view == _BEYOND), _loss_caption(results))
        for view in (_LADDER, _BEYOND)
    )
    ends = ", ".join(f"{name} {bits:.3f}" for name, bits in results.rungs[-1].bits_per_byte.items())
    alt = f"Line chart: bits per byte over training FLOPs at every rung, and fitted laws. The largest rung: {ends}."
    return Chart("losses", alt, (("View", (_LADDER, _BEYOND)),), variants)


def leverage(results: LadderResults, looks: Sequence[Look]) -> Chart | None:
    """Draw leverage over FLOPs with its interval; for one mixture at a time, beside what published laws say."""
    rivals = [one for one in results.contestants if one.leverage]
    if not rivals:
        return None
    told = [one.name for one in rivals if any(figure.contestant == one.name for figure in results.published)]
    variants = [Variant((_ALL,), _leverage_figure(results, looks, rivals), _leverage_caption(results))]
    variants += [
        Variant(
            (name,),
            _leverage_figure(results, looks, [_named(rivals, name)], published=True),
            _published_caption(results),
        )
        for name in told
    ]
    ends = "; ".join(f"{one.name} {at_decade(one, 0).leverage:.2f}" for one in rivals)
    alt = f"Line chart: leverage over {results.baseline} by training FLOPs. At the ladder's end: {ends}."
    return Chart("leverage", alt, (("Show", (_ALL, *told)),), tuple(variants), legend=False)


def _loss_figure(results: LadderResults, looks: Sequence[Look], *, beyond: bool) -> Figure:
    end = results.rungs[-1].flops
    shown = {one.name: [p for p in one.losses if beyond or p.flops <= end * 1.001] for one in results.contestants}
    data: list[Figure] = []
    for look in looks:
        points = shown[look.name]
        data += _drawn(look, points, [point.bits_per_byte for point in points], end, ": %{y:.3f} by the laws")
        data += [
            {**_marks(look, rung.curves[look.name]), "opacity": 0.5}
            for rung in results.rungs
            if look.name in rung.curves
        ]
        data += [_ends(results, look)]
    if not beyond:
        data += _predictions(results, looks)
    figures = [
        y for points in shown.values() for p in points for y in ((p.low, p.high) if beyond else (p.bits_per_byte,))
    ]
    figures += [bits for rung in results.rungs for curve in rung.curves.values() for _, bits in curve]
    first = min(at for rung in results.rungs for curve in rung.curves.values() for at, _ in curve)
    last = max(point.flops for points in shown.values() for point in points)
    ends = [End(look, shown[look.name][-1].flops, shown[look.name][-1].bits_per_byte) for look in looks]
    y_axis = parts.log_axis(min(figures) / 1.01, max(figures) * 1.01, "Held-out bits per byte", "{:g}".format)
    low = first / 1.1
    x_axis = parts.log_axis(low, parts.room_for_labels(ends, low, last * 1.02), _FLOPS, parts.power_text)
    labels = parts.end_labels(ends, x_axis["range"], y_axis["range"])
    layout = {"height": 440, "xaxis": x_axis, "yaxis": y_axis, "annotations": labels}
    if beyond:
        layout |= {"margin": {"t": 30}, "shapes": _beyond(end, x_axis), "annotations": [*labels, _beyond_label(end)]}
    return {"data": data, "layout": layout}


def _drawn(
    look: Look, points: Sequence[LossPoint | LeveragePoint], middle: Sequence[float], end: float, hover: str
) -> list[Figure]:
    """Draw a line with its band: solid within the ladder, dotted beyond."""
    x = [point.flops for point in points]
    here = sum(at <= end * 1.001 for at in x)
    told = f"{hover}<br>at %{{x:.2e}} FLOPs"
    drawn = [
        parts.band(look, x, [point.low for point in points], [point.high for point in points]),
        {**parts.line(look, x[:here], middle[:here], told)},
    ]
    if here < len(x):
        line = parts.line(look, x[here - 1 :], middle[here - 1 :], told)
        drawn.append({**line, "line": {**line["line"], "dash": "dot"}})
    return drawn


def _marks(look: Look, curve: Sequence[tuple[float, float]]) -> Figure:
    line = parts.line(look, [at for at, _ in curve], [bits for _, bits in curve], ", measured: %{y:.3f}", width=1)
    return {**line, "line": {**line["line"], "dash": "solid"}}


def _ends(results: LadderResults, look: Look) -> Figure:
    there = [rung.curves[look.name][-1] for rung in results.rungs if look.name in rung.curves]
    line = parts.line(look, [at for at, _ in there], [bits for _, bits in there], ", end of a rung: %{y:.3f}")
    return {**line, "mode": "markers", "marker": {"color": look.colour, "size": 7, "symbol": look.symbol}}


def _predictions(results: LadderResults, looks: Sequence[Look]) -> list[Figure]:
    """Draw what the smaller rungs predicted of the largest, just beside where it came out."""
    if results.held_out is None:
        return []
    made = []
    by_name = {look.name: look for look in looks}
    for place, one in enumerate(results.held_out.predictions):
        look = by_name[one.contestant]
        x = results.rungs[-1].curves[one.contestant][-1][0] * 1.05 ** (place + 1)
        line = parts.line(
            look, [x], [one.predicted], f", predicted: {one.predicted:.3f} ({one.low:.3f} to {one.high:.3f})"
        )
        made.append(
            {
                **line,
                "mode": "markers",
                "marker": {"color": look.colour, "size": 7, "symbol": f"{look.symbol}-open"},
                "error_y": parts.intervals([one.predicted], [one.low], [one.high], look.colour),
            }
        )
    return made


def _leverage_figure(
    results: LadderResults, looks: Sequence[Look], rivals: Sequence[ContestantLadder], *, published: bool = False
) -> Figure:
    end = results.rungs[-1].flops
    by_name = {look.name: look for look in looks}
    data: list[Figure] = []
    for one in rivals:
        middle = [point.leverage for point in one.leverage]
        data += _drawn(by_name[one.name], one.leverage, middle, end, ": %{y:.2f}×")
    figures = [y for one in rivals for point in one.leverage for y in (point.low, point.high)]
    last = max(point.flops for one in rivals for point in one.leverage)
    ends = [End(by_name[one.name], one.leverage[-1].flops, one.leverage[-1].leverage) for one in rivals]
    if published:
        traces, law_ends = _published(results, by_name[rivals[0].name])
        data += traces
        ends += law_ends
        figures += [y for trace in traces for y in trace["y"] if y is not None]
        last = max(last, *(law_end.x for law_end in law_ends))
    low_y, high_y = min(0.8, *figures) / 1.05, min(max(1.25, *figures) * 1.05, _HIGHEST)
    low_x = rivals[0].leverage[0].flops / 1.1
    y_axis = parts.log_axis(
        low_y, high_y, f"Times the FLOPs that {plotly_text(results.baseline)} needs", "{:g}×".format
    )
    x_axis = parts.log_axis(low_x, parts.room_for_labels(ends, low_x, last * 1.02), _FLOPS, parts.power_text)
    until = last if not published else end * 10 ** max(point.decades_beyond for point in rivals[0].leverage)
    layout = {
        "height": 440,
        "margin": {"t": 30},
        "xaxis": x_axis,
        "yaxis": y_axis,
        "shapes": [parts.level(1), *_beyond(end, x_axis, until)],
        "annotations": [*parts.end_labels(ends, x_axis["range"], y_axis["range"]), _beyond_label(end)],
    }
    return {"data": data, "layout": layout}


def _published(results: LadderResults, look: Look) -> tuple[list[Figure], list[End]]:
    """Draw each law that speaks of the mixture: thick within its range, thin outside."""
    traces, ends = [], []
    for law, dash in zip(results.published_laws, _LAW_DASHES, strict=False):
        said = [
            figure
            for figure in sorted(results.published, key=lambda figure: figure.flops)
            if figure.law == law.name and figure.contestant == look.name and figure.leverage is not None
        ]
        if not said:
            continue
        grey = Look(look.index, law.name, "var(--muted)", dash, "circle")
        x, y = [figure.flops for figure in said], [figure.leverage or 0.0 for figure in said]
        traces.append(parts.line(grey, x, y, ": %{y:.2f}×<br>at %{x:.2e} FLOPs", width=1))
        inside = [(figure.flops, figure.leverage or 0.0) for figure in said if figure.within_its_range]
        traces.append(
            parts.line(
                grey, [at for at, _ in inside], [value for _, value in inside], ": %{y:.2f}×, within its range", width=3
            )
        )
        seen = [(at, value) for at, value in zip(x, y, strict=True) if value < _HIGHEST] or [(x[-1], y[-1])]
        ends.append(End(grey, *seen[-1]))
    return traces, ends


def _beyond(end: float, x_axis: Figure, until: float | None = None) -> list[Figure]:
    """Shade what lies beyond the ladder, behind everything."""
    last = 10 ** x_axis["range"][1] if until is None else until
    return [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": end, "x1": last, "y0": 0, "y1": 1, "layer": "below",
            "fillcolor": "var(--raised)", "line": {"width": 0},
        }
    ]  # fmt: skip


def _beyond_label(end: float) -> Figure:
    return {
        "text": "beyond the ladder", "x": math.log10(end), "y": 1, "yref": "paper", "xanchor": "left",
        "yanchor": "bottom", "xshift": 4, "showarrow": False, "font": {"color": "var(--muted)", "size": 12},
    }  # fmt: skip


def _named(contestants: Sequence[ContestantLadder], name: str) -> ContestantLadder:
    return next(one for one in contestants if one.name == name)


def _loss_caption(results: LadderResults) -> str:
    held_out = " Hollow marks with bars: the largest rung as the smaller ones predicted it." if results.held_out else ""
    return f"Bands are 80 % intervals.{held_out}"


def _leverage_caption(results: LadderResults) -> str:
    return (
        f"Above 1 a contestant is cheaper than {results.baseline}. Bands are 80 % intervals: of seeds, of the fit, "
        "of the choice of law, and of how held-out rungs strayed. Dotted: beyond the ladder."
    )


def _published_caption(results: LadderResults) -> str:
    return (
        "Grey: published laws for a mixture of this expansion and granularity, thick where they were fitted, thin "
        "outside. Beyond the shaded part the ladder says nothing."
    )
