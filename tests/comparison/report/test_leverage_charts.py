"""The two charts beside the answer: what they draw of whom, what they leave out, and that they say so."""

from typing import Any

import pytest
from tests.comparison.sample_results import DENSE, MOE, contestant, everyone, model, nine, results, run, sample

from moekit.comparison.analysis.baseline_comparison import kind_of
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.report.chart_parts import Look, Variant, looks_of
from moekit.comparison.report.learning_curve_chart import learning_curves
from moekit.comparison.report.leverage_charts import leverage
from moekit.comparison.results_schema import Results


def looks(comparison: Results) -> list[Look]:
    return looks_of([(one.name, kind_of(one.config)) for one in comparison.contestants], comparison.baseline)


def forest(comparison: Results) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The marks by contestant, and the caption."""
    chart = leverage(comparison, judge(comparison).against, looks(comparison))
    assert chart is not None
    [variant] = chart.variants
    marks: dict[str, list[dict[str, Any]]] = {}
    for trace in variant.figure["data"]:
        marks.setdefault(trace["name"], []).append(trace)
    return marks, variant.caption


def curves(comparison: Results, axis: str, view: str) -> Variant:
    chart = learning_curves(comparison, looks(comparison))
    assert chart is not None
    return next(variant for variant in chart.variants if variant.choice == (axis, view))


def test_a_mark_is_the_ratio_of_the_verdict_with_its_interval() -> None:
    comparison = sample()
    marks, _ = forest(comparison)
    final = judge(comparison).against["moe"].final.ratios
    assert final is not None
    flops, seconds = marks["moe"]
    assert flops["x"] == [pytest.approx(final["flops"].mean, rel=1e-4)]
    assert flops["error_x"]["array"] == [pytest.approx(final["flops"].high - final["flops"].mean, rel=1e-3)]
    assert seconds["x"] == [pytest.approx(final["seconds"].mean, rel=1e-4)]
    assert (flops["marker"]["symbol"] + "-open") == seconds["marker"]["symbol"]


def test_who_never_got_there_is_told_apart_from_who_did() -> None:
    """Never: turned round, at its own level. Not in every seed: a bound without an interval."""
    comparison = nine()
    marks, caption = forest(comparison)
    inverse = judge(comparison).against["lstm"].inverse.ratios
    assert inverse is not None
    assert marks["lstm"][0]["text"] == [f"{1 / inverse['flops'].mean:.2g}×"]
    assert "Not reached by lstm: ▾" in caption
    assert marks["gpt3"][0]["marker"]["symbol"] == "triangle-right"
    assert "error_x" not in marks["gpt3"][0]
    assert "Reached by gpt3 in 1 of 3 seeds alone: ▸" in caption
    assert "Without FLOPs: ngram." in caption
    assert len(marks["ngram"]) == 1  # seconds alone


def test_no_mark_lies_outside_of_the_axis() -> None:
    comparison = everyone()
    chart = leverage(comparison, judge(comparison).against, looks(comparison))
    assert chart is not None
    figure = chart.variants[0].figure
    low, high = (10**end for end in figure["layout"]["xaxis"]["range"])
    assert all(low <= trace["x"][0] <= high for trace in figure["data"])
    [ngram] = [trace for trace in figure["data"] if trace["name"] == "ngram"]
    assert ngram["marker"]["symbol"] == "triangle-left-open"
    assert ngram["text"] == ["0.013×"]


def test_bands_are_intervals_over_seeds() -> None:
    comparison = sample()
    variant = curves(comparison, "FLOPs", "Whole run")
    filled = [trace for trace in variant.figure["data"] if trace.get("fill")]
    assert len(filled) == len(comparison.contestants)
    assert not [trace for trace in curves(sample((0,)), "FLOPs", "Whole run").figure["data"] if trace.get("fill")]
    line = next(trace for trace in variant.figure["data"] if trace.get("name") == "dense")
    band = filled[0]
    points = len(line["y"])
    high, low = band["y"][:points], band["y"][: points - 1 : -1]
    assert all(bottom <= mean <= top for bottom, mean, top in zip(low, line["y"], high, strict=True))
    assert low[-1] < line["y"][-1] < high[-1]


def test_the_end_of_the_run_shows_what_answers_and_names_what_it_leaves_out() -> None:
    slow = contestant("moe", model([MOE]), [run(0, 1.9)], total=3, active=1)
    far = contestant("lstm", everyone().contestants[6].config, [run(0, 3.5)], total=1, active=1)
    counted = contestant("ngram", everyone().contestants[7].config, [run(0, 0.6, flops=0)], total=1, active=1, flops=0)
    made = results(
        [contestant("dense", model([DENSE]), [run(0, 2.0)], total=1, active=1), slow, far, counted], seeds=[0]
    )
    end, whole = (curves(made, "FLOPs", view) for view in ("End of the run", "Whole run"))
    low, high = (10**bound for bound in end.figure["layout"]["yaxis"]["range"])
    assert low < 1.9 < high < 3.5
    assert "Above this view: lstm (3.500)." in end.caption
    assert "Below this view: ngram, at its end (0.600)." in end.caption
    assert "Without FLOPs, and so without a line: ngram." in end.caption
    assert whole.figure["layout"]["yaxis"]["range"][1] > end.figure["layout"]["yaxis"]["range"][1]
    assert "Above this view" not in whole.caption
    named = [one["text"] for one in end.figure["layout"]["annotations"]]
    assert "lstm" not in named
    assert {"dense", "moe"} <= set(named)
