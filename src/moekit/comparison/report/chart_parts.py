"""What charts are made of: how a contestant looks, axes and their ticks, lines, bands, marks, levels and labels.

A chart is a plotly figure in plain dictionaries; the page's script adds what all of them share. A colour is the name of
a CSS variable, `var(--ink)`, which the script resolves, so that a chart follows light and dark. The `meta` of a trace,
shape or annotation is the index of the contestant that it belongs to, so that the legend can hide it. A chart has
variants, one for each combination of what can be chosen beside it (an axis, a layer).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moekit.comparison.analysis.baseline_comparison import REFERENCES
from moekit.comparison.report.escaping import plotly_text
from moekit.comparison.verdict_schema import Kind
from moekit.core.formatting import count_text

Figure = dict[str, Any]
_COLOURS = 8
_SYMBOLS = ("diamond", "square", "triangle-up", "cross", "star", "pentagon", "x", "hourglass")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Of a chart's drawing area, in pixels: only to keep labels apart, so that it need not be exact.
_WIDTH, _HEIGHT, _LINE, _LETTER = 540, 320, 15, 7


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


@dataclass(frozen=True)
class End:
    """The end of a line, which its contestant's name stands beside."""

    look: Look
    x: float
    y: float


def looks_of(contestants: Sequence[tuple[str, Kind]], baseline: str) -> list[Look]:
    """Give each contestant a colour and a symbol of its own, and to its lines the dash of its kind.

    The baseline has the colour of the text, the others a palette that colour-blind readers can tell apart. Lines of
    mixtures are solid, those of dense models dashed (the baseline's is solid), those of references dotted.
    """
    made: list[Look] = []
    others = 0
    for index, (name, kind) in enumerate(contestants):
        if name == baseline:
            made.append(Look(index, name, "var(--ink)", "solid", "circle"))
            continue
        dash = "dot" if kind in REFERENCES else "dash" if kind == "dense" else "solid"
        # Past the last colour the same one comes with another symbol.
        symbol = _SYMBOLS[(others + others // _COLOURS) % len(_SYMBOLS)]
        made.append(Look(index, name, f"var(--s{others % _COLOURS + 1})", dash, symbol))
        others += 1
    return made


def line(look: Look, x: Iterable[float], y: Iterable[float], hover: str, *, width: float = 2.5) -> Figure:
    """Draw a contestant's line; `hover` is what is said of a point (`%{x}`, `%{y}`) after the contestant's name."""
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": look.index,
        "name": plotly_text(look.name),
        "x": numbers(x),
        "y": numbers(y),
        "line": {"color": look.colour, "width": width, "dash": look.dash},
        "hovertemplate": f"%{{fullData.name}}{hover}<extra></extra>",
    }


def band(look: Look, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Figure:
    """Fill what lies between `low` and `high` in a contestant's colour, faintly."""
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": look.index,
        "x": numbers([*x, *reversed(x)]),
        "y": numbers([*high, *reversed(low)]),
        "fill": "toself",
        "fillcolor": look.colour,
        "opacity": 0.16,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def intervals(middle: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> Figure:
    """Make the bars of marks at `middle` from `low` to `high`: an `error_x` or `error_y`."""
    return {
        "type": "data",
        "array": numbers(top - mean for top, mean in zip(high, middle, strict=True)),
        "arrayminus": numbers(mean - bottom for bottom, mean in zip(low, middle, strict=True)),
        "thickness": 1.5,
        "width": 3,
        "color": colour,
    }


def unit_text(value: float) -> str:
    """Write a round figure with a decimal unit, without zeros that say nothing: `500 G`, `1 T`."""
    if value < 1:
        return f"{value:g}"
    digits, _, unit = count_text(value).partition(" ")
    return f"{float(digits):g} {unit}".rstrip()


def forest_mark(
    look: Look,
    y: float,
    values: tuple[float, float, float],
    ends: tuple[float, float],
    *,
    hollow: bool,
    symbol: str | None = None,
    interval: bool = True,
) -> Figure:
    """Draw a ratio with its interval in a row of a forest plot; an arrow and a figure stand for one beyond the axis.

    Args:
        look: of the contestant.
        y: of the row.
        values: the mean, and the ends of its interval.
        ends: of the logarithmic axis.
        hollow: whether the mark is an outline.
        symbol: another one than the contestant's.
        interval: whether it is drawn.
    """
    mean, low, high = values
    x = min(max(mean, ends[0] * 1.03), ends[1] / 1.03)
    beyond = x != mean
    shape = symbol or look.symbol
    if beyond:
        shape = "triangle-left" if x > mean else "triangle-right"
    figure: Figure = {
        "type": "scatter",
        "mode": "markers+text" if beyond else "markers",
        "meta": look.index,
        "name": plotly_text(look.name),
        "x": numbers([x]),
        "y": [y],
        "text": [f"{mean:.2g}×"],
        "textposition": "middle right" if x > mean else "middle left",
        "textfont": {"color": "var(--muted)", "size": 12},
        "marker": {
            "color": look.colour,
            "size": 10,
            "symbol": shape + ("-open" if hollow else ""),
            "line": {"width": 2 if hollow else 0},
        },
        "cliponaxis": False,
    }
    if interval and not beyond:
        figure["error_x"] = intervals([x], [max(low, ends[0])], [min(high, ends[1])], look.colour)
    return figure


def rows_axis(names: Sequence[str]) -> Figure:
    """Make the y axis of a forest plot: a name a row, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [plotly_text(short_name(name)) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
    }


def sides(left: str, right: str) -> tuple[list[Figure], list[Figure]]:
    """Draw the line at 1 of a forest plot, and say above it what lies left and right of it: shapes and annotations."""
    ink = {"color": "var(--ink)", "width": 1}
    at_one = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": ink}
    shared = {"font": {"color": "var(--muted)", "size": 12}, "showarrow": False}
    place = shared | {"x": 0, "yref": "paper", "y": 1, "yanchor": "bottom"}
    return [at_one], [
        place | {"text": f"◂ {left}", "xanchor": "right", "xshift": -6},
        place | {"text": f"{right} ▸", "xanchor": "left", "xshift": 6},
    ]


def log_axis(low: float, high: float, title: str, text: Callable[[float], str] = unit_text) -> Figure:
    """Make a logarithmic axis from `low` to `high` (both above 0), with ticks at round figures that `text` writes."""
    ticks = log_ticks(low, high)
    return {
        "type": "log",
        "title": {"text": title},
        "range": [round(math.log10(low), 5), round(math.log10(high), 5)],
        "tickvals": ticks,
        "ticktext": [text(tick) for tick in ticks],
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Choose about four to eight round figures between `low` and `high` (both above 0) for a logarithmic axis.

    Whole decades or every few of them over a wide range, 1, 2 and 5 of each over some, even steps within a narrow one.
    """
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if decades > 2.7:
        every = max(1, round(decades / 7))
        found = [10.0**power for power in range(first, last + 1) if power % every == 0]
    elif decades > 0.8:
        found = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    else:
        step = _round_step((high - low) / 5)
        found = [step * count for count in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return [float(f"{tick:.6g}") for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _round_step(step: float) -> float:
    """Round to 1, 2, 2.5 or 5 times a power of ten, not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= step * (1 - 1e-9))


def power_text(value: float) -> str:
    """Write `10²¹` or `2·10²¹`, as FLOPs far beyond names of units are read."""
    power = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10**power:.3g}"
    tens = f"10{str(power).translate(_SUPERSCRIPTS)}"
    return tens if factor == "1" else f"{factor}·{tens}"


def names_axis(names: Sequence[str]) -> Figure:
    """Make an axis of names, in this order, the long ones cut so that they leave room for the chart on a phone."""
    keys = [plotly_text(name) for name in names]
    short = [plotly_text(short_name(name)) for name in names]
    return {"type": "category", "categoryarray": keys, "tickvals": keys, "ticktext": short}


def short_name(name: str) -> str:
    """Cut a long name to 20 characters."""
    return name if len(name) <= 20 else f"{name[:19]}…"


def level(value: float) -> Figure:
    """Draw a dotted line across the chart at `value` of its y axis: a shape."""
    dots = {"color": "var(--muted)", "width": 1.2, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": dots}


def level_label(value: float, text: str, *, left: bool = False) -> Figure:
    """Write what a level is, at its right or left end: an annotation (`value` is a logarithm on a logarithmic axis)."""
    font = {"color": "var(--muted)", "size": 12}
    x, anchor = (0, "left") if left else (1, "right")
    place = {"xref": "paper", "x": x, "xanchor": anchor, "y": value, "yanchor": "bottom", "showarrow": False}
    return {"text": plotly_text(text), "font": font, **place}


def end_labels(ends: Sequence[End], x_range: Sequence[float], y_range: Sequence[float]) -> list[Figure]:
    """Write names beside the ends of lines, moved up or down as far as keeps them apart.

    Args:
        ends: in any order; one outside of the ranges has no label.
        x_range: of a logarithmic axis, as logarithms to base ten.
        y_range: the same.
    """
    (first_x, last_x), (first_y, last_y) = x_range, y_range
    places = [(end, math.log10(end.x), math.log10(end.y)) for end in ends if end.x > 0 and end.y > 0]
    places = [(end, x, y) for end, x, y in places if first_x <= x <= last_x and first_y <= y <= last_y]
    places.sort(key=lambda place: -place[2])
    lefts = [(x - first_x) / (last_x - first_x) * _WIDTH for _, x, _ in places]
    wanted = [(y - first_y) / (last_y - first_y) * _HEIGHT for _, _, y in places]
    names = [short_name(end.look.name) for end, _, _ in places]
    heights = _apart([(left, left + len(name) * _LETTER) for left, name in zip(lefts, names, strict=True)], wanted)
    return [
        {
            "meta": end.look.index,
            "text": plotly_text(name),
            "font": {"color": end.look.colour, "size": 12},
            "x": round(x, 5),
            "y": round(y, 5),
            "xanchor": "left",
            "xshift": 5,
            "yshift": round(height - at, 1),
            "showarrow": False,
        }
        for (end, x, y), name, height, at in zip(places, names, heights, wanted, strict=True)
    ]


def _apart(spans: Sequence[tuple[float, float]], wanted: Sequence[float]) -> list[float]:
    """Give heights in pixels at which labels that span these pixels do not touch, down from the highest wanted.

    What would then lie below the axis is moved up, and what is in its way with it.
    """
    heights: list[float] = []

    def near(one: int, other: int) -> bool:
        return spans[one][0] < spans[other][1] and spans[other][0] < spans[one][1]

    for index, height in enumerate(wanted):
        heights.append(min([height, *(heights[other] - _LINE for other in range(index) if near(index, other))]))
    for index in reversed(range(len(heights))):
        below = [heights[other] + _LINE for other in range(index + 1, len(heights)) if near(index, other)]
        heights[index] = max([heights[index], _LINE / 2, *below])
    return heights


def room_for_labels(ends: Sequence[End], low: float, high: float) -> float:
    """Give the upper end of a logarithmic x axis that leaves room for the labels of `ends`, beside their lines."""
    span = math.log10(high / low)
    needed = span
    for end in ends:
        if low < end.x <= high:
            width = (len(short_name(end.look.name)) * _LETTER + 10) / _WIDTH
            needed = max(needed, math.log10(end.x / low) / (1 - min(0.4, width)))
    return float(low * 10**needed)


def number(value: float) -> float | None:
    """Round to five significant digits, more than a screen shows; gives None for what is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def numbers(values: Iterable[float]) -> list[float | None]:
    """Round each, with None, a gap in the line, for what is no number."""
    return [number(value) for value in values]
