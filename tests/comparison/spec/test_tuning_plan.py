"""Which rates are tried for whom, and which is taken."""

from dataclasses import replace

from tests.comparison.test_experiment import DENSE, MOE, request

from moekit.comparison.spec.comparison_plan import ComparisonPlan, new_plan
from moekit.comparison.spec.contestants import Contestant
from moekit.comparison.spec.tuning_plan import FACTORS, trial_name, trials_plan, with_rates
from moekit.config import NGramConfig

NGRAM = Contestant(name="ngram", model=NGramConfig(order=3))


def plan(**changes: object) -> ComparisonPlan:
    return new_plan(replace(request((DENSE, MOE, NGRAM)), tune=True, **changes))  # type: ignore[arg-type]


def test_each_contestant_that_learns_has_as_many_trials() -> None:
    trials = trials_plan(plan())
    assert [entry.name for entry in trials.contestants] == [
        trial_name(name, factor) for name in ("dense", "moe") for factor in FACTORS
    ]
    assert [entry.rate_factor for entry in trials.contestants] == [*FACTORS, *FACTORS]
    assert not trials.tune


def test_trials_have_a_seed_of_their_own_and_the_rate_that_they_try() -> None:
    whole = plan(seeds=5)
    trials = trials_plan(whole)
    assert not set(trials.seeds) & set(whole.seeds)
    tried = [trials.training_of(entry.name, trials.seeds[0]).learning_rate for entry in trials.contestants]
    assert tried == [factor * whole.training.learning_rate for factor in FACTORS] * 2


def test_trials_get_their_share_of_the_budget() -> None:
    whole = plan(tokens=None, budget_seconds=700.0, seeds=3)
    assert trials_plan(whole).budget_seconds == 700.0 * len(FACTORS) / (len(FACTORS) + 3)


def test_the_best_rate_is_taken() -> None:
    bits = {trial_name("dense", factor): abs(factor - 2.0) for factor in FACTORS}
    bits |= {trial_name("moe", factor): abs(factor - 0.5) for factor in FACTORS}
    rates = {entry.name: entry.rate_factor for entry in with_rates(plan(), bits).contestants}
    assert rates == {"dense": 2.0, "moe": 0.5, "ngram": 1.0}


def test_trials_that_failed_are_no_choice() -> None:
    bits: dict[str, float | None] = {trial_name("dense", factor): None for factor in FACTORS}
    bits |= {trial_name("moe", factor): 2.0 if factor == 1.0 else None for factor in FACTORS}
    rates = {entry.name: entry.rate_factor for entry in with_rates(plan(), bits).contestants}
    assert rates == {"dense": 1.0, "moe": 1.0, "ngram": 1.0}


def test_an_optional_contestant_without_trials_stays_out() -> None:
    whole = plan(tokens=None, budget_seconds=700.0).model_copy(update={"optional": ("moe",)})
    assert trials_plan(whole).optional == tuple(trial_name("moe", factor) for factor in FACTORS)
    bits = {trial_name("dense", factor): 1.0 for factor in FACTORS}
    assert [entry.name for entry in with_rates(whole, bits).contestants] == ["dense", "ngram"]
