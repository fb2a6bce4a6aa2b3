"""The charts, as plotly figures in plain dictionaries; the page's script adds what all of them share.

A colour is the name of a CSS variable, `var(--ink)`, which the script resolves, so that a chart follows light and dark.
A chart has variants, one for each combination of what can be chosen beside it (an axis, a layer).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moekit.comparison.analysis.baseline_comparison import SHARES, AgainstBaseline, finished
from moekit.comparison.analysis.learning_curves import AXES, Axis
from moekit.comparison.report.escaping import plotly_text
from moekit.comparison.results_schema import ContestantResults, CurvePoint, ExpertsByDomain, Results

Figure = dict[str, Any]
AXIS_NAMES: dict[Axis, str] = {"tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds"}
AXIS_TITLES: dict[Axis, str] = {
    "tokens": "Training tokens",
    "flops": "Training FLOPs",
    "seconds": "Seconds in training steps",
}
_COLOURS = 8
_LEVELS = [0.5, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 3, 3.5, 4, 5, 6, 7, 8]
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("diamond", "square", "triangle-up", "cross", "star", "pentagon")


@dataclass(frozen=True)
class Look:
    """How one contestant looks in every chart and in the legend."""

    index: int
    name: str
    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Variant:
    """One state of a chart: what is chosen, its figure, and a caption of its own."""

    choice: tuple[str, ...]
    figure: Figure
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart in all its states.

    alt: what the chart shows, in words. choices: the name of each thing that can be chosen, with its values in order.
    variants: one for each combination of those values. legend: whether the page shows the legend with it.
    """

    id: str
    alt: str
    choices: tuple[tuple[str, tuple[str, ...]], ...]
    variants: tuple[Variant, ...]
    legend: bool = True


def looks(results: Results) -> list[Look]:
    """Give the baseline the colour of the text, and the others a palette that colour-blind readers can tell apart."""
    made: list[Look] = []
    others = 0
    for index, contestant in enumerate(results.contestants):
        if contestant.name == results.baseline:
            made.append(Look(index, contestant.name, "var(--ink)", "solid", "circle"))
            continue
        colour, dash = f"var(--s{others % _COLOURS + 1})", _DASHES[others // _COLOURS % len(_DASHES)]
        # Past the last colour the same one comes with another symbol.
        symbol = _SYMBOLS[(others + others // _COLOURS) % len(_SYMBOLS)]
        made.append(Look(index, contestant.name, colour, dash, symbol))
        others += 1
    return made


def curves(results: Results) -> Chart | None:
    """Draw held-out bits per byte over tokens, FLOPs and seconds: each contestant's mean, its seeds thin behind it."""
    if not any(one.curve for one in results.contestants):
        return None
    views = ("Whole run", "Last half")
    free = [one.name for one in results.contestants if one.curve and not one.flops_per_token]
    absent = {"flops": f"Without FLOPs, and so without a line: {', '.join(free)}." if free else ""}
    variants = [
        Variant((AXIS_NAMES[axis], view), _curve_figure(results, axis, whole=view == views[0]), absent.get(axis, ""))
        for axis in AXES
        for view in views
    ]
    ends = ", ".join(f"{one.name} {one.bits_per_byte:.3f}" for one in results.contestants if one.bits_per_byte)
    alt = f"Line chart: held-out bits per byte of each contestant while it trains. They end at: {ends}."
    choices = (("Over", tuple(AXIS_NAMES[axis] for axis in AXES)), ("View", views))
    return Chart("curves", alt, choices, tuple(variants))


def _curve_figure(results: Results, axis: Axis, *, whole: bool) -> Figure:
    data: list[Figure] = []
    shown: list[CurvePoint] = []
    for look, contestant in zip(looks(results), results.contestants, strict=True):
        lines = [(f"seed {run.seed}", run.curve, 1.0, 0.35) for run in finished(contestant)]
        if len(lines) > 1:
            lines.append(("mean", contestant.curve, 2.5, 1.0))
        elif lines:
            lines = [(lines[0][0], contestant.curve, 2.5, 1.0)]
        for label, curve, width, opacity in lines:
            points = [point for point in curve if math.isfinite(point.bits_per_byte) and getattr(point, axis) > 0]
            if not whole and points:
                points = [point for point in points if point.tokens >= points[-1].tokens * 0.499]
            shown += points
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "meta": look.index,
                    "name": plotly_text(look.name),
                    "x": _numbers(getattr(point, axis) for point in points),
                    "y": _numbers(point.bits_per_byte for point in points),
                    "line": {"color": look.colour, "width": width, "dash": look.dash if opacity == 1.0 else "solid"},
                    "opacity": opacity,
                    "hovertemplate": f"%{{fullData.name}}, {label}<br>%{{x:.3s}}: %{{y:.3f}}<extra></extra>",
                }
            )
    layout: Figure = {
        "xaxis": {"title": {"text": AXIS_TITLES[axis]}, "type": "log" if whole else "linear"},
        "yaxis": {"tickformat": ".2~f"},
    }
    if whole:
        # both axes logarithmic: a power law is a straight line, and its far end is not squeezed
        layout["xaxis"]["dtick"] = "D2"
        layout["yaxis"] = {"type": "log", "tickvals": _LEVELS, "ticktext": [f"{level:g}" for level in _LEVELS]}
        unigram = results.corpus.unigram_bits_per_byte
        if unigram > 0:
            layout["shapes"] = [_level(unigram)]
            layout["annotations"] = [_level_label(math.log10(unigram), "byte frequencies alone")]
    return {"data": data, "layout": layout}


def budget(results: Results, against: dict[str, AgainstBaseline]) -> Chart | None:
    """Draw what each contestant needs for the baseline's level, over what the baseline needs, at growing budgets."""
    if not any(reach.ratios for one in against.values() for reach in one.reach):
        return None
    axes: tuple[Axis, ...] = ("flops", "seconds", "tokens")
    variants = tuple(Variant((AXIS_NAMES[axis],), _budget_figure(results, against, axis)) for axis in axes)
    alt = "Line chart: what each contestant needed to reach the baseline's level, at four budgets of the baseline."
    return Chart("budget", alt, (("Counted in", tuple(AXIS_NAMES[axis] for axis in axes)),), variants)


def _budget_figure(results: Results, against: dict[str, AgainstBaseline], axis: Axis) -> Figure:
    data: list[Figure] = []
    rivals = [look for look in looks(results) if look.name in against]
    for place, look in enumerate(rivals):
        reaches = [reach for reach in against[look.name].reach if reach.ratios]
        estimates = [(reach, reach.ratios[axis]) for reach in reaches if reach.ratios and axis in reach.ratios]
        aside = (place - (len(rivals) - 1) / 2) * 1.1
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "meta": look.index,
                "name": plotly_text(look.name),
                "x": _numbers(100 * reach.share + aside for reach, _ in estimates),
                "y": _numbers(estimate.mean for _, estimate in estimates),
                "error_y": {
                    "type": "data",
                    "array": _numbers(estimate.high - estimate.mean for _, estimate in estimates),
                    "arrayminus": _numbers(estimate.mean - estimate.low for _, estimate in estimates),
                    "visible": any(estimate.spread != "none" for _, estimate in estimates),
                    "thickness": 1.5,
                    "width": 3,
                    "color": look.colour,
                },
                "customdata": [f"{reach.reached} of {reach.seeds}" for reach, _ in estimates],
                "line": {"color": look.colour, "width": 2, "dash": look.dash},
                "marker": {"color": look.colour, "size": 8, "symbol": look.symbol},
                "hovertemplate": "%{fullData.name}: %{y:.2f}<br>reached by %{customdata} seeds<extra></extra>",
            }
        )
    ticks = [100 * share for share in SHARES]
    layout = {
        "xaxis": {
            "title": {"text": f"Share of the baseline's run, in {AXIS_NAMES['tokens'].lower()}"},
            "tickvals": ticks,
            "ticktext": [f"{tick:.0f} %" for tick in ticks],
            "range": [15, 110],
            "showgrid": False,
        },
        "yaxis": {"rangemode": "tozero", "tickformat": ".2~f"},
        "shapes": [_level(1)],
        "annotations": [_level_label(1, "as much as the baseline")],
    }
    return {"data": data, "layout": layout}


def domains(results: Results) -> Chart | None:
    """Draw held-out bits per byte by domain, one mark a contestant."""
    names = list(dict.fromkeys(name for one in results.contestants for name in one.bits_per_byte_by_domain))
    if not names:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "meta": look.index,
            "name": plotly_text(look.name),
            "x": _numbers(contestant.bits_per_byte_by_domain.values()),
            "y": [plotly_text(name) for name in contestant.bits_per_byte_by_domain],
            "marker": {"color": look.colour, "size": 11, "symbol": look.symbol, "opacity": 0.9},
            "hovertemplate": "%{fullData.name}, %{y}: %{x:.3f}<extra></extra>",
        }
        for look, contestant in zip(looks(results), results.contestants, strict=True)
    ]
    layout = {
        "height": 90 + 44 * len(names),
        "xaxis": {"title": {"text": "Held-out bits per byte"}},
        "yaxis": {**_names(names), "autorange": "reversed"},
    }
    alt = "Dot chart: held-out bits per byte of each contestant in each domain."
    return Chart("domains", alt, (), (Variant((), {"data": data, "layout": layout}),))


def decode(results: Results) -> Chart | None:
    """Draw how long one token takes to decode: half of the tokens in the box, nine in ten between the whiskers."""
    data: list[Figure] = []
    for look, contestant in zip(looks(results), results.contestants, strict=True):
        times = sorted(time for run in finished(contestant) for time in run.decode_ms)
        if not times:
            continue
        low, first, middle, third, high = _numbers(quantile(times, at) for at in (0.05, 0.25, 0.5, 0.75, 0.95))
        data.append(
            {
                "type": "box",
                "orientation": "h",
                "meta": look.index,
                "name": plotly_text(look.name),
                "y": [plotly_text(look.name)],
                "lowerfence": [low],
                "q1": [first],
                "median": [middle],
                "q3": [third],
                "upperfence": [high],
                "line": {"color": look.colour, "width": 1.5},
                "fillcolor": "var(--page)",
                "width": 0.5,
                "hoverinfo": "x",
            }
        )
    if not data:
        return None
    layout = {
        "height": 90 + 46 * len(data),
        "xaxis": {"title": {"text": "Milliseconds per token"}, "rangemode": "tozero", "hoverformat": ".3f"},
        "yaxis": {**_names([one.name for one in results.contestants]), "autorange": "reversed"},
        "hovermode": "closest",
    }
    ends = ", ".join(
        f"{one.name} {one.decode_ms_per_token_median:.2f} ms"
        for one in results.contestants
        if one.decode_ms_per_token_median is not None
    )
    alt = f"Box chart: time per decoded token of each contestant. The medians: {ends}."
    return Chart("decode", alt, (), (Variant((), {"data": data, "layout": layout}),), legend=False)


def routing(results: Results) -> Chart | None:
    """Draw the load of the busiest expert over the mean load, by layer: a mark a seed, a line through the means."""
    data: list[Figure] = []
    for look, contestant in zip(looks(results), results.contestants, strict=True):
        by_layer: dict[int, list[float]] = {}
        for run in finished(contestant):
            for layer in run.routing:
                by_layer.setdefault(layer.layer, []).append(layer.load_max_over_mean)
        if not by_layer:
            continue
        means = {layer: sum(values) / len(values) for layer, values in sorted(by_layer.items())}
        marks = [(layer, value) for layer, values in by_layer.items() for value in values]
        shared = {"type": "scatter", "meta": look.index, "name": plotly_text(look.name)}
        hover = "%{fullData.name}, layer %{x}: %{y:.2f}<extra></extra>"
        marker = {"color": look.colour, "size": 7, "symbol": look.symbol, "opacity": 0.45}
        line = {"color": look.colour, "width": 2, "dash": look.dash}
        x, y = list(means), _numbers(means.values())
        data.append(shared | {"mode": "lines", "x": x, "y": y, "line": line, "hovertemplate": hover})
        x, y = [layer for layer, _ in marks], _numbers(value for _, value in marks)
        data.append(shared | {"mode": "markers", "x": x, "y": y, "marker": marker, "hovertemplate": hover})
    if not data:
        return None
    layout = {
        "xaxis": {"title": {"text": "Layer"}, "dtick": 1, "showgrid": False},
        "yaxis": {"tickformat": ".2~f"},
        "shapes": [_level(1)],
        "annotations": [_level_label(1, "perfectly even")],
    }
    alt = "Line chart: load of the busiest expert over the mean load, for each layer with experts."
    return Chart("routing", alt, (), (Variant((), {"data": data, "layout": layout}),))


def experts(results: Results) -> Chart | None:
    """Draw heat maps of experts by domain: one for each contestant, layer and seed."""
    tables = [
        (contestant, run.seed, table)
        for contestant in results.contestants
        for run in finished(contestant)
        for table in run.experts_by_domain
    ]
    if not tables:
        return None
    variants = tuple(
        Variant((one.name, str(table.layer), str(seed)), _heat_map(table), _heat_caption(table))
        for one, seed, table in tables
    )
    choices = (
        ("Contestant", tuple(dict.fromkeys(one.name for one, _, _ in tables))),
        ("Layer", tuple(str(layer) for layer in sorted({table.layer for _, _, table in tables}))),
        ("Seed", tuple(str(seed) for seed in sorted({seed for _, seed, _ in tables}))),
    )
    alt = "Heat map: which share of each domain's assignments goes to which expert."
    return Chart("experts", alt, choices, variants, legend=False)


def _heat_map(table: ExpertsByDomain) -> Figure:
    count = len(table.share[0]) if table.share else 0
    even = 1 / count if count else 0.0
    peak = max((max(row, default=0.0) for row in table.share), default=0.0)
    data = {
        "type": "heatmap",
        "x": list(range(count)),
        "y": [plotly_text(name) for name in table.domains],
        "z": [_numbers(100 * share for share in row) for row in table.share],
        "zmin": 0,
        "zmax": _number(100 * max(peak, 2 * even)),
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "ticksuffix": " %", "nticks": 5},
        "hovertemplate": "%{y}, expert %{x}: %{z:.1f} %<extra></extra>",
    }
    layout = {
        "height": 110 + 38 * len(table.domains),
        "xaxis": {"title": {"text": "Expert"}, "showgrid": False, "dtick": 1 if count <= 16 else 4},
        "yaxis": {**_names(table.domains), "autorange": "reversed", "showgrid": False},
        "hovermode": "closest",
    }
    return {"data": [data], "layout": layout}


def _heat_caption(table: ExpertsByDomain) -> str:
    known = table.mutual_information_bits > table.shuffled_p95_bits
    return (
        f"Knowing the domain tells {table.mutual_information_bits:.3f} bits about the expert. With the domains of the "
        f"windows shuffled it is {table.shuffled_mean_bits:.3f} on average and {table.shuffled_p95_bits:.3f} at the "
        f"95 % point: {'more than chance' if known else 'no more than chance'}."
    )


def quantile(ordered: Sequence[float], at: float) -> float:
    """Give the `at` quantile (0 to 1) of values in order, linear between neighbours."""
    place = at * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def has_routing(contestant: ContestantResults) -> bool:
    """Say whether a finished run tells what a router did."""
    return any(run.routing for run in finished(contestant))


def _names(names: Sequence[str]) -> Figure:
    """Make an axis of names, in this order, the long ones cut so that they leave room for the chart on a phone."""
    keys = [plotly_text(name) for name in names]
    short = [plotly_text(name if len(name) <= 20 else f"{name[:19]}…") for name in names]
    return {"type": "category", "categoryarray": keys, "tickvals": keys, "ticktext": short}


def _level(value: float) -> Figure:
    line = {"color": "var(--muted)", "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def _level_label(value: float, text: str) -> Figure:
    font = {"color": "var(--muted)", "size": 12}
    place = {"xref": "paper", "x": 1, "xanchor": "right", "y": value, "yanchor": "bottom", "showarrow": False}
    return {"text": text, "font": font, **place}


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Round to five significant digits, more than a screen shows; None, a gap in the line, for what is no number."""
    return [_number(value) for value in values]
