"""The best of several against the baseline: whole comparisons of equals, and the interval under many forms of noise."""

import numpy as np
import pytest
from scipy.special import stdtrit
from tests.comparison.simulated_comparisons import Setup, tally_of

from moekit.comparison.analysis.best_rival import best_rival, pick_factor
from moekit.comparison.analysis.simultaneous import differences

FORMS = {
    "equal": {},
    "seeds do the same to all": {"shared": 3.0},
    "seeds do the same to all rivals": {"of_rivals": 3.0},
    "a noisy baseline": {"deviations": [4.0] + [1.0] * 7},
    "a noisy rival": {"deviations": [1.0] * 7 + [4.0]},
    "half of them noisy": {"deviations": [1.0] * 4 + [4.0] * 4},
    "heavy tails": {"noise": "heavy tails (Student's t, 3 degrees)"},
    "outliers": {"noise": "one run in ten six times as noisy"},
    "skewed": {"noise": "skewed (exponential)"},
}
DRAWS = 1000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_of_equals_neither_side_is_favoured(form: str, seeds: int) -> None:
    """With the interval of the best one alone it is 8 % for the rivals and 0.2 % for the baseline."""
    setup = Setup(seeds=seeds, truth=[0.0] * 8, **FORMS[form])  # type: ignore[arg-type]
    random = np.random.default_rng(1)
    sides = np.zeros(DRAWS, dtype=int)
    for draw in range(DRAWS):
        base_S, *rivals_KS = (dict(enumerate(figures_S.tolist())) for figures_S in setup.draw(random))
        found = best_rival(base_S, {str(index): figures_S for index, figures_S in enumerate(rivals_KS)})
        sides[draw] = found.difference.side(0.0)
    below, above = (sides < 0).mean(), (sides > 0).mean()
    assert below <= 0.045
    assert above <= 0.045
    assert abs(below - above) <= 0.025
    assert 0.93 <= 1 - below - above <= 0.99


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("gaps", [[-3.0] + [0.0] * 6, [-8.0] + [0.0] * 6, [0.0] + [4.0] * 6, [-2.0, -2.0, 1.0]])
def test_the_interval_covers_the_truth_of_the_best(seeds: int, gaps: list[float]) -> None:
    setup = Setup(seeds=seeds, truth=[0.0, *gaps])
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(DRAWS):
        base_S, *rivals_KS = (dict(enumerate(figures_S.tolist())) for figures_S in setup.draw(random))
        found = best_rival(base_S, {str(index): figures_S for index, figures_S in enumerate(rivals_KS)})
        covered += found.difference.low <= 0.01 * gaps[int(found.name)] <= found.difference.high
    assert 0.93 <= covered / DRAWS <= 0.975


@pytest.mark.parametrize(("seeds", "rivals"), [(2, 1), (2, 7), (3, 3), (5, 7)])
def test_whole_comparisons_of_equals(seeds: int, rivals: int) -> None:
    """A false headline in 5 of 100 at most, either way alike, where all of `judge` takes part.

    benchmarks/verdict_null.py draws more.
    """
    found = tally_of(Setup(seeds=seeds, truth=[0.0] * (rivals + 1), shared=2.0), 480 // (rivals + 1))
    assert found.rival <= 0.06
    assert found.baseline <= 0.06
    assert 0.9 <= found.covered <= 0.99


def test_whole_comparisons_with_hybrids_and_several_dense_ones() -> None:
    """A dense contestant that is far better is no rival of a dense baseline; the hybrid that is better wins."""
    kinds = ["dense", "moe", "hybrid", "dense", "moe"]
    equal = tally_of(Setup(seeds=3, truth=[0.0, 0.0, 0.0, -9.0, 0.0], kinds=kinds), 80)
    assert equal.rival + equal.baseline <= 0.06
    better = tally_of(Setup(seeds=3, truth=[0.0, 2.0, -8.0, -9.0, 1.0], kinds=kinds), 40)
    assert better.rival == better.baseline == 0
    assert better.decided >= 0.85
    assert better.covered >= 0.9


def test_where_seeds_agree_it_is_students() -> None:
    """A rival that is the best in every seed is held against the baseline as if it were the only one."""
    figures = {"a": {0: 1.0, 1: 1.1, 2: 1.3}, "b": {0: 1.5, 1: 1.6, 2: 1.7}}
    baseline = {0: 2.0, 1: 2.0, 2: 2.1}
    both, alone = best_rival(baseline, figures), best_rival(baseline, {"a": figures["a"]})
    assert both.difference == alone.difference
    assert both.picks == {"a": 3}
    assert (both.candidates, alone.candidates) == (2, 1)
    error = np.std([-1.0, -0.9, -0.8], ddof=1) / np.sqrt(3)
    assert alone.difference.high - alone.difference.mean == pytest.approx(stdtrit(2, 0.975) * error)


def test_fewer_seeds_say_less() -> None:
    """The same mean and spread: the interval of fewer seeds is wider, however many rivals there are."""
    for rivals in (1, 2, 7):
        factors = [pick_factor(rivals, seeds) / np.sqrt(seeds) for seeds in (2, 3, 4, 5, 8)]
        assert factors == sorted(factors, reverse=True)
    assert best_rival({0: 2.0}, {"a": {0: 1.0}, "b": {0: 1.5}}).difference.spread == "none"


def test_two_seeds_decide_seldom_where_more_do_not() -> None:
    """Of comparisons without a difference, those that two of their five seeds decide are no more than 5 in 100."""
    random = np.random.default_rng(3)
    setup = Setup(seeds=5, truth=[0.0] * 4)
    stronger = 0
    for _ in range(DRAWS):
        figures = setup.draw(random)
        decided = []
        for seeds in (2, 5):
            base_S, *rivals_KS = (dict(enumerate(figures_S[:seeds].tolist())) for figures_S in figures)
            found = best_rival(base_S, {str(index): each for index, each in enumerate(rivals_KS)})
            decided.append(found.difference.side(0.0) != 0)
        stronger += decided[0] and not decided[1]
    assert stronger / DRAWS <= 0.05


@pytest.mark.parametrize("form", ["equal", "a noisy baseline", "half of them noisy", "outliers"])
@pytest.mark.parametrize("seeds", [2, 3])
def test_of_all_that_are_told_together_none_seems_better(form: str, seeds: int) -> None:
    """With noise pooled over a baseline that is four times noisier it was 12 % of two seeds, 4.5 % of three."""
    setup = Setup(seeds=seeds, truth=[0.0] * 8, **FORMS[form])  # type: ignore[arg-type]
    random = np.random.default_rng(4)
    won = 0
    for _ in range(400):
        base_S, *rivals_KS = (dict(enumerate(figures_S.tolist())) for figures_S in setup.draw(random))
        found = differences(base_S, {str(index): each for index, each in enumerate(rivals_KS)})
        won += any(estimate.side(0.0) < 0 for estimate in found.values())
    assert won / 400 <= 0.05
