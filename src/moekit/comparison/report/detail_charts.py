"""The charts of the details: quality by domain, response time, balance of the routers, experts by domain."""

import math
from collections.abc import Sequence

from moekit.comparison.analysis.baseline_comparison import REFERENCES, finished
from moekit.comparison.report import chart_parts as parts
from moekit.comparison.report.chart_parts import Chart, Figure, Look, Variant
from moekit.comparison.report.escaping import plotly_text
from moekit.comparison.results_schema import ExpertsByDomain, Results
from moekit.comparison.verdict_schema import AgainstBaseline


def domains(results: Results, looks: Sequence[Look]) -> Chart | None:
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
            "x": parts.numbers(contestant.bits_per_byte_by_domain.values()),
            "y": [plotly_text(name) for name in contestant.bits_per_byte_by_domain],
            "marker": {"color": look.colour, "size": 11, "symbol": look.symbol, "opacity": 0.9},
            "hovertemplate": "%{fullData.name}, %{y}: %{x:.3f}<extra></extra>",
        }
        for look, contestant in zip(looks, results.contestants, strict=True)
    ]
    layout = {
        "height": 90 + 44 * len(names),
        "xaxis": {"title": {"text": "Held-out bits per byte"}},
        "yaxis": {**parts.names_axis(names), "autorange": "reversed"},
    }
    alt = "Dot chart: held-out bits per byte of each contestant in each domain."
    return Chart("domains", alt, (), (Variant((), {"data": data, "layout": layout}),))


def decode(results: Results, looks: Sequence[Look]) -> Chart | None:
    """Draw how long one token takes to decode: half of the tokens in the box, nine in ten between the whiskers."""
    data: list[Figure] = []
    for look, contestant in zip(looks, results.contestants, strict=True):
        times = sorted(time for run in finished(contestant) for time in run.token_ms)
        if not times:
            continue
        low, first, middle, third, high = parts.numbers(quantile(times, at) for at in (0.05, 0.25, 0.5, 0.75, 0.95))
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
        "yaxis": {**parts.names_axis([one.name for one in results.contestants]), "autorange": "reversed"},
        "hovermode": "closest",
    }
    ends = ", ".join(
        f"{one.name} {one.decode_ms_per_token_median:.3g} ms"
        for one in results.contestants
        if one.decode_ms_per_token_median is not None
    )
    alt = f"Box chart: time per decoded token of each contestant. The medians: {ends}."
    return Chart("decode", alt, (), (Variant((), {"data": data, "layout": layout}),), legend=False)


def served_ratios(against: dict[str, AgainstBaseline], looks: Sequence[Look], baseline: str) -> Chart | None:
    """Draw, a row a contestant, the time of a decoded token over the baseline's: at the comparison's size and grown."""
    rows = [(look, against[look.name]) for look in looks if look.name in against and against[look.name].decode_interval]
    if not rows:
        return None
    found = [
        (look, row, ratio, interval, grown)
        for row, (look, one) in enumerate(rows)
        for grown, ratio, interval in (
            (False, one.decode, one.decode_interval),
            (True, one.decode_grown, one.decode_grown_interval),
        )
        if ratio is not None and interval is not None
    ]
    answering = [interval for look, *_, interval, _ in found if against[look.name].kind not in REFERENCES]
    bounds = [0.8, 1.25, *(end for interval in answering for end in (interval.low, interval.high))]
    ends = max(min(bounds), 1 / 8) / 1.12, min(max(bounds), 8.0) * 1.12
    data = []
    for look, row, ratio, interval, grown in found:
        mark = parts.forest_mark(
            look, row + (0.16 if grown else -0.16), (ratio, interval.low, interval.high), ends, hollow=grown
        )
        where = "at a size that no cache holds" if grown else "at the comparison's size"
        span = f"{ratio:.2f} ({interval.low:.2f} to {interval.high:.2f})"
        data.append(mark | {"hovertemplate": f"%{{fullData.name}}, {where}: {span}<extra></extra>"})
    shapes, annotations = parts.sides("faster", "slower")
    title = f"Time per token over that of {plotly_text(parts.short_name(baseline))}"
    layout = {
        "height": max(220, 96 + 40 * len(rows)),
        "xaxis": parts.log_axis(*ends, title, "{:g}".format),
        "yaxis": parts.rows_axis([look.name for look, _ in rows]),
        "margin": {"t": 30},
        "shapes": shapes,
        "annotations": annotations,
    }
    alt = "Forest plot: the time of a decoded token over the baseline's, at two sizes; the tables have the figures."
    return Chart("served", alt, (), (Variant((), {"data": data, "layout": layout}),), legend=False)


def routing(results: Results, looks: Sequence[Look]) -> Chart | None:
    """Draw the load of the busiest expert over the mean load, by layer: a mark a seed, a line through the means."""
    data: list[Figure] = []
    for look, contestant in zip(looks, results.contestants, strict=True):
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
        x, y = list(means), parts.numbers(means.values())
        data.append(shared | {"mode": "lines", "x": x, "y": y, "line": line, "hovertemplate": hover})
        x, y = [layer for layer, _ in marks], parts.numbers(value for _, value in marks)
        data.append(shared | {"mode": "markers", "x": x, "y": y, "marker": marker, "hovertemplate": hover})
    if not data:
        return None
    layout = {
        "xaxis": {"title": {"text": "Layer"}, "dtick": 1, "showgrid": False},
        "yaxis": {"tickformat": ".2~f"},
        "shapes": [parts.level(1)],
        "annotations": [parts.level_label(1, "perfectly even")],
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
        "z": [parts.numbers(100 * share for share in row) for row in table.share],
        "zmin": 0,
        "zmax": parts.number(100 * max(peak, 2 * even)),
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "ticksuffix": " %", "nticks": 5},
        "hovertemplate": "%{y}, expert %{x}: %{z:.1f} %<extra></extra>",
    }
    layout = {
        "height": 110 + 38 * len(table.domains),
        "xaxis": {"title": {"text": "Expert"}, "showgrid": False, "dtick": 1 if count <= 16 else 4},
        "yaxis": {**parts.names_axis(table.domains), "autorange": "reversed", "showgrid": False},
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
