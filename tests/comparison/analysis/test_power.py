"""Power against simulation, and the noise that is known beforehand against the results that it is taken from."""

from pathlib import Path

import numpy as np
import pytest
from tests.comparison.sample_results import everyone

from moekit.comparison.analysis.baseline_comparison import REFERENCES, final_by_seed, find, kind_of
from moekit.comparison.analysis.best_rival import best_rival
from moekit.comparison.analysis.power import (
    PRIOR,
    paired_deviation,
    prior_text,
    seeds_needed,
    visible_difference,
)
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.results_schema import read_results

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_visible_difference_is_seen_in_four_of_five(seeds: int) -> None:
    random = np.random.default_rng(0)
    difference = visible_difference(seeds, deviation=0.01)
    gaps = random.normal(-difference, 0.01, (1000, seeds)).tolist()
    seen = [
        best_rival(dict.fromkeys(range(seeds), 0.0), {"a": dict(enumerate(gap))}).difference.side(0.0) for gap in gaps
    ]
    assert seen.count(-1) / 1000 == pytest.approx(0.8, abs=0.04)


def test_more_seeds_see_less_and_rivals_cost_some() -> None:
    seen = [visible_difference(seeds, 0.01) for seeds in (2, 3, 4, 6, 10)]
    assert seen == sorted(seen, reverse=True)
    assert visible_difference(3, 0.01, rivals=5) > visible_difference(3, 0.01)
    assert visible_difference(3, 0.02) == pytest.approx(2 * visible_difference(3, 0.01))
    for seeds in (3, 6):
        assert seeds_needed(visible_difference(seeds, 0.01) * 1.0001, 0.01) == seeds
    assert seeds_needed(1e-5, 0.01) is None


def test_the_prior_noise_is_that_of_its_source() -> None:
    results = read_results(ROOT / PRIOR.source)
    baseline = find(results, results.baseline)
    assert baseline is not None
    rivals = {
        one.name: final_by_seed(one)
        for one in results.contestants
        if one is not baseline and kind_of(one.config) not in REFERENCES
    }
    assert (results.settings.size, results.settings.tokens) == (PRIOR.size, PRIOR.tokens)
    assert paired_deviation(final_by_seed(baseline), rivals) == pytest.approx(PRIOR.deviation, rel=0.01)


def test_what_will_be_seen_is_told_where_it_is_known() -> None:
    told = prior_text("xs", 600_000, 3, "embedded")
    assert told is not None
    assert told.startswith(f"With 3 seeds a difference of {visible_difference(3, PRIOR.deviation):.3f} bits per byte")
    assert "no answer" in (prior_text("xs", 600_000, 1, "embedded") or "")
    assert prior_text("m", 600_000, 3, "embedded") is None
    assert prior_text("xs", 600_000, 3, "essays") is None


def test_the_verdict_says_what_its_seeds_show() -> None:
    (check,) = [check for check in judge(everyone()).checks if check.code == "power"]
    assert check.good
    assert check.text.startswith("With 3 seeds, which differ by")
    assert "half of that takes" in check.text
