"""The page of a ladder: what stands on it as sentences and tables, beside its charts."""

from moekit.comparison.ladder.ladder_answer import at_decade, flops_text, leverage_text
from moekit.comparison.ladder.ladder_schema import LadderResults
from moekit.comparison.report import ladder_charts
from moekit.comparison.report.chart_parts import looks_of
from moekit.comparison.report.page_frame import Table, page_of
from moekit.core.formatting import count_text

_NONE = "–"
_ASKED_LAST = 1e21


def render_ladder(results: LadderResults) -> str:
    """Write the report of a ladder as one HTML document."""
    looks = looks_of([(one.name, one.kind) for one in results.contestants], results.baseline)
    return page_of(
        "ladder.html",
        charts=[ladder_charts.losses(results, looks), ladder_charts.leverage(results, looks)],
        looks=looks,
        results=results,
        answer=_headline(results),
        figures=_leverage_table(results),
        made_of=_made_of_table(results),
        held_out=_held_out_table(results),
        rungs=_rung_table(results),
        laws=_law_table(results),
        published=_published_table(results),
    )


def _headline(results: LadderResults) -> str:
    """State every contestant's leverage at the ladder's end, and pick none of them."""
    told = [f"{one.name} {at_decade(one, 0).leverage:.2f}×" for one in results.contestants if one.leverage]
    return (
        f"Times the FLOPs that {results.baseline} needs for the same loss: {', '.join(told)}"
        if told
        else "No contestant to compare"
    )


def _leverage_table(results: LadderResults) -> Table:
    end = results.rungs[-1].flops
    decades = [0, 1, 2, 3]
    scales = [end * 10.0**decade for decade in decades]
    rows = []
    for one in results.contestants:
        if not one.leverage:
            continue
        rows.append([one.name, *(leverage_text(at_decade(one, decade)) for decade in decades), _NONE])
        said = [[_said(results, one.name, scale) for scale in (*scales, _ASKED_LAST)]]
        rows += [[f"{one.name}, published", *row] for row in said if any(cell != _NONE for cell in row)]
    heads = ["the ladder's end", "a decade beyond", "two", "three"]
    headings = ["Leverage", *(f"{flops_text(s)}: {head}" for s, head in zip(scales, heads, strict=True)), "1e21"]
    caption = (
        f"How many times the FLOPs {results.baseline} needs, with 80 % intervals; below it the least and the most that "
        "published laws say, in brackets how many of them were fitted there"
    )
    return Table(caption, headings, rows)


def _said(results: LadderResults, name: str, flops: float) -> str:
    figures = [one for one in results.published if one.contestant == name and abs(one.flops / flops - 1) < 1e-6]
    values = [one.leverage for one in figures if one.leverage is not None]
    if not values:
        return _NONE
    return f"{min(values):.2f}× to {max(values):.2f}× ({sum(one.within_its_range for one in figures)} of {len(values)})"


def _made_of_table(results: LadderResults) -> Table:
    rows = []
    for one in results.contestants:
        for decade, where in ((0, "at the end"), (3, "three decades on")):
            if one.leverage:
                point = at_decade(one, decade)
                parts = (point.from_seeds, point.from_fit, point.from_law, point.from_held_out)
                rows.append([f"{one.name}, {where}", *(f"{100 * part:.1f} %" for part in parts)])
    headings = [
        "Standard deviation of leverage",
        "Seeds",
        "One law's fit, seeds in it",
        "Choice of law",
        "Held-out rungs",
    ]
    return Table("What the intervals are made of", headings, rows)


def _held_out_table(results: LadderResults) -> Table | None:
    if results.held_out is None:
        return None
    rows = [
        [
            one.contestant, f"{one.predicted:.3f}", f"{one.low:.3f} to {one.high:.3f}", f"{one.got:.3f}",
            f"{one.got - one.predicted:+.3f}", "yes" if one.inside else "no",
        ]
        for one in results.held_out.predictions
    ]  # fmt: skip
    headings = ["Contestant", "Predicted", "80 % interval", "Got", "Off by", "Inside"]
    return Table("Bits per byte at the end of the largest rung, predicted from the smaller ones alone", headings, rows)


def _rung_table(results: LadderResults) -> Table:
    rows = [
        [
            rung.size, count_text(rung.baseline_size), count_text(rung.tokens), flops_text(rung.flops), str(rung.seeds),
            f"{rung.epochs:.2f}", " ".join(rung.order), f"{rung.pairs_in_order} of {rung.pairs}",
            f"{100 * rung.order_kept:.0f} %",
        ]
        for rung in results.rungs
    ]  # fmt: skip
    headings = [
        "Rung", "N", "Tokens a run", "FLOPs", "Seeds", "Times read", "Order, best first", "Pairs as at the largest",
        "Whole order kept",
    ]  # fmt: skip
    caption = (
        "N: training FLOPs of a token over six, of the baseline. Whole order kept: in how many of 100 drawings of the "
        "seeds' noise the order is the largest rung's"
    )
    return Table(caption, headings, rows)


def _law_table(results: LadderResults) -> Table:
    rows = []
    for law in results.laws:
        use = "yes" if law.used else f"no: {law.problem}"
        exponents = [_range(list(found.values())) for found in (law.size_exponents, law.token_exponents)]
        rows.append([law.form, law.formula, f"{law.floor:.2f}", *exponents, f"{100 * law.misfit:.2f} %", use])
    headings = ["Law", "Form", "E", "Exponents of size (FLOPs)", "Of tokens", "Misfit", "Used"]
    return Table("Laws, fitted to all rungs: exponents from the least to the largest contestant's", headings, rows)


def _published_table(results: LadderResults) -> Table:
    rows = [
        [
            law.name, law.formula, law.source, law.meaning,
            f"{flops_text(law.flops[0])} to {flops_text(law.flops[1])} FLOPs; {law.fitted_on}", law.checked,
        ]
        for law in results.published_laws
    ]  # fmt: skip
    return Table("Published laws", ["Law", "Form", "Source", "What N and FLOPs are", "Fitted on", "Checked"], rows)


def _range(values: list[float]) -> str:
    return _NONE if not values else f"{min(values):.2f} to {max(values):.2f}"
