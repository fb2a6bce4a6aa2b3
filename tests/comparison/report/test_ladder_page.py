"""The page of a ladder: it says what ladder.json holds, and draws what lies beyond the ladder as such."""

import re
from collections.abc import Iterator

import pytest
from tests.comparison.ladder.sample_ladder import sample_ladder

from moekit.comparison.ladder.ladder_analysis import analyse
from moekit.comparison.ladder.ladder_answer import leverage_text
from moekit.comparison.ladder.ladder_schema import LadderResults
from moekit.comparison.ladder.target_scale import parse_scale
from moekit.comparison.report import ladder_charts
from moekit.comparison.report.chart_parts import Figure, looks_of
from moekit.comparison.report.ladder_page import render_ladder


@pytest.fixture(scope="module")
def ladder() -> LadderResults:
    return analyse(
        sample_ladder(), ["a", "b", "c", "d"], command="moekit compare '<b>'", target=parse_scale("70b"), draws=20
    )


def traces(figure: Figure, dash: str) -> Iterator[Figure]:
    return (trace for trace in figure["data"] if trace.get("mode") == "lines" and trace["line"].get("dash") == dash)


def test_the_page_says_what_was_found(ladder: LadderResults) -> None:
    html = render_ladder(ladder)
    for sentence in ladder.sentences:
        assert sentence in html.replace("&#39;", "'")
    assert ladder.held_out is not None
    for one in ladder.held_out.predictions:
        assert f"{one.predicted:.3f}" in html
        assert f"{one.got:.3f}" in html
    for law in ladder.published_laws:
        assert law.name in html
    assert "<b>" not in html.split("<script")[0]
    assert "At 70b" in html


def test_nothing_is_fetched(ladder: LadderResults) -> None:
    html = render_ladder(ladder)
    assert not re.findall(r'(?:src|href)="(?!#)', html.split("<script")[0])
    assert "default-src &#39;none&#39;" in html


def test_what_lies_beyond_is_drawn_as_such(ladder: LadderResults) -> None:
    """Solid lines end with the ladder, dotted ones three decades beyond it; the part between is shaded."""
    looks = looks_of([(one.name, one.kind) for one in ladder.contestants], ladder.baseline)
    end = ladder.rungs[-1].flops
    chart = ladder_charts.leverage(ladder, looks)
    assert chart is not None
    figure = chart.variants[0].figure
    solid, dotted = list(traces(figure, "solid")), list(traces(figure, "dot"))
    assert len(solid) == len(dotted) == 4
    assert all(max(trace["x"]) == pytest.approx(end, rel=1e-3) for trace in solid)
    assert all(min(trace["x"]) == pytest.approx(end, rel=1e-3) for trace in dotted)
    assert all(max(trace["x"]) == pytest.approx(1000 * end, rel=1e-3) for trace in dotted)
    assert any(shape["type"] == "rect" and shape["x0"] == end for shape in figure["layout"]["shapes"])


def test_published_laws_stand_beside_one_mixture(ladder: LadderResults) -> None:
    """Up to 1e22 FLOPs, thick where they were fitted; the ladder's own line ends long before."""
    looks = looks_of([(one.name, one.kind) for one in ladder.contestants], ladder.baseline)
    chart = ladder_charts.leverage(ladder, looks)
    assert chart is not None
    assert chart.choices[0][1] == ("All, by the ladder", "moe", "moe-fine", "hybrid", "moe-many")
    drawn = chart.variants[1].figure["data"]
    laws = {trace["name"] for trace in drawn if trace.get("line", {}).get("color") == "var(--muted)"}
    assert laws == {"Clark 2022", "Ludziejewski 2025", "Abnar 2025", "Ling 2025"}
    own = [trace for trace in drawn if trace.get("name") == "moe"]
    assert max(x for trace in own for x in trace["x"]) < 2e3 * ladder.rungs[-1].flops
    assert max(x for trace in drawn for x in trace["x"]) == pytest.approx(1e22)


def test_two_rungs_and_one_contestant_have_a_page() -> None:
    two = analyse(sample_ladder(rungs=2), ["a", "b"], draws=8)
    assert "nothing could be held out" in render_ladder(two)
    alone = [rung.model_copy(update={"contestants": rung.contestants[:1]}) for rung in sample_ladder(rungs=3)]
    assert leverage_text(two.contestants[1].leverage[0]) in render_ladder(two) or two.contestants[1].leverage
    assert "No contestant to compare" in render_ladder(analyse(alone, ["a", "b", "c"], draws=8))
