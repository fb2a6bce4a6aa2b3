"""Several contestants at once: the factor against SciPy's Dunnett, and how often one of equals is said to be better."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import dunnett

from moekit.comparison.analysis.simultaneous import differences, dunnett_factor

TRIES = 400


@pytest.mark.parametrize("degrees", [2, 5, 14, 100])
def test_of_one_contestant_it_is_students(degrees: int) -> None:
    assert dunnett_factor(1, degrees) == pytest.approx(stdtrit(degrees, 0.975), rel=1e-3)


# Dunnett 1964, table of two-sided 5 %: treatments, degrees of freedom.
@pytest.mark.parametrize(("contestants", "degrees", "expected"), [(2, 10, 2.57), (3, 10, 2.76), (2, 20, 2.38)])
def test_of_several_it_is_the_published_table(contestants: int, degrees: int, expected: float) -> None:
    assert dunnett_factor(contestants, degrees) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(("contestants", "runs"), [(2, 4), (7, 3), (5, 6)])
def test_it_is_scipys(contestants: int, runs: int) -> None:
    """Which has no seeds that contestants share, and so more degrees of freedom."""
    random = np.random.default_rng(0)
    groups = random.normal(size=(contestants + 1, runs))
    found = dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(1)).confidence_interval()
    noise = np.sqrt(groups.var(axis=1, ddof=1).mean())
    factor = (found.high - found.low) / 2 / (noise * np.sqrt(2 / runs))
    assert dunnett_factor(contestants, (contestants + 1) * (runs - 1)) == pytest.approx(factor.mean(), rel=0.01)


def better(deviations: list[float], runs: int, seeds: float, draw: Callable[[np.random.Generator], float]) -> float:
    """The share of comparisons of equals, the baseline first, in which somebody is said to be better."""
    random = np.random.default_rng(5)
    won = 0
    for _ in range(TRIES):
        shared = random.normal(0, seeds, runs)
        figures = [{seed: shared[seed] + one * draw(random) for seed in range(runs)} for one in deviations]
        found = differences(figures[0], {str(index): each for index, each in enumerate(figures[1:])})
        won += any(estimate.side(0.0) < 0 for estimate in found.values())
    return won / TRIES


@pytest.mark.parametrize("runs", [2, 3, 5])
@pytest.mark.parametrize("contestants", [2, 7])
@pytest.mark.parametrize("seeds", [0.0, 3.0], ids=["", "seeds differ"])
def test_of_equals_seldom_one_is_better(contestants: int, runs: int, seeds: float) -> None:
    """2.5 % by design; with intervals for one comparison it is 8 % of 7 contestants, and over half with two seeds."""
    assert better([1.0] * (contestants + 1), runs, seeds, lambda random: random.normal()) < 0.05


@pytest.mark.parametrize(
    "deviations", [[1.0] * 7 + [4.0], [1.0] * 4 + [4.0] * 4, [4.0] + [1.0] * 7], ids=["one", "half", "the baseline"]
)
def test_unequal_noise_makes_few_winners(deviations: list[float]) -> None:
    assert better(deviations, 3, 0.0, lambda random: random.normal()) < 0.075


def test_who_is_clearly_better_is_found() -> None:
    random = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        figures = [{seed: random.normal() - 6 * (one == 1) for seed in range(3)} for one in range(8)]
        estimates = differences(figures[0], {str(index): each for index, each in enumerate(figures[1:])})
        found += estimates["0"].side(0.0) < 0
    assert found > 150


def test_runs_that_failed_are_no_pairs() -> None:
    figures = {"a": {0: 1.0, 1: 1.1, 2: 1.3}, "b": {0: 1.0, 2: 1.0}, "c": {1: 0.9}, "d": {}}
    found = differences({0: 2.0, 1: 2.1, 2: 2.2}, figures)
    assert {name: (one.seeds, one.spread) for name, one in found.items()} == {
        "a": (3, "interval"),
        "b": (2, "interval"),
        "c": (1, "none"),
    }
    assert found["b"].mean == pytest.approx(-1.1)
    assert differences({0: 2.0}, {"a": {0: 1.0}, "b": {0: 1.5}})["a"].spread == "none"
