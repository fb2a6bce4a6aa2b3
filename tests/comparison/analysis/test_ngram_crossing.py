"""Where curves of known laws meet, predicted from their beginnings."""

from collections.abc import Callable

import pytest
from tests.comparison.sample_results import DENSE, NGRAM, contestant, model, results, run

from moekit.comparison.analysis.ngram_crossing import crossing_text, ngram_crossings
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.results_schema import CurvePoint, Results

TOKENS = 1_000_000


def points(law: Callable[[float], float], flops: float = 100.0) -> list[CurvePoint]:
    return [
        CurvePoint(
            step=int(32 * share), tokens=int(share * TOKENS), flops=share * TOKENS * flops, seconds=share * 100.0,
            bits_per_byte=law(share * TOKENS), train_loss=1.0,
        )
        for share in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
    ]  # fmt: skip


def comparison(trained: Callable[[float], float], counted: Callable[[float], float], seeds: int = 2) -> Results:
    def runs(law: Callable[[float], float], flops: float) -> list:
        return [run(seed, law(TOKENS)).model_copy(update={"curve": points(law, flops)}) for seed in range(seeds)]

    return results(
        [
            contestant("dense", model([DENSE]), runs(trained, 100.0), total=1, active=1),
            contestant("ngram", NGRAM, runs(counted, 0.0), total=1, active=7, flops=0),
        ],
        seeds=range(seeds),
    )


def slow(tokens: float) -> float:
    """The n-gram model's: low at once, and slow from there."""
    return 2.4 * (tokens / TOKENS) ** -0.05


@pytest.mark.parametrize("times", [2.0, 5.0])
def test_power_laws_meet_where_they_do(times: float) -> None:
    """The truth has no floor; the floors that are tried stand around it, and the interval holds it."""
    start = 2.4 * times**0.15  # 2.4 (x)^-0.05 = start (x)^-0.2 at x = times

    (found,) = ngram_crossings(comparison(lambda tokens: start * (tokens / TOKENS) ** -0.2, slow))
    assert found.name == "dense"
    assert not found.measured
    assert found.tokens is not None
    assert found.low is not None
    assert found.low <= times * TOKENS * 1.02
    assert found.high is None or found.high >= times * TOKENS * 0.98
    assert found.tokens == pytest.approx(times * TOKENS, rel=0.5)
    assert found.flops == pytest.approx(100 * found.tokens)
    assert found.seconds == pytest.approx(100 * found.tokens / TOKENS)
    text = crossing_text(comparison(lambda tokens: start * (tokens / TOKENS) ** -0.2, slow))
    assert text is not None
    assert text.startswith("In a longer run the first to come below the n-gram model would be `dense`, after")


def test_who_is_below_already_is_said() -> None:
    made = comparison(lambda tokens: 2.4 * (tokens / TOKENS / 0.5) ** -0.2 * 0.5**-0.05, slow)
    (found,) = ngram_crossings(made)
    assert found.measured
    assert found.tokens == pytest.approx(0.625 * TOKENS, rel=0.01)  # the first point behind it
    assert crossing_text(made) == "Below the n-gram model within this run: `dense`."
    (check,) = [check for check in judge(made).checks if check.code == "ngram_crossing"]
    assert check.good


def test_what_is_too_far_or_absent_is_not_predicted() -> None:
    (far,) = ngram_crossings(comparison(lambda tokens: 6 * (tokens / TOKENS) ** -0.06, slow))
    assert far.tokens is None
    made = comparison(lambda tokens: 6 * (tokens / TOKENS) ** -0.06, slow)
    assert crossing_text(made) == "No transformer comes below the n-gram model within 30 times this run's tokens."
    alone = made.model_copy(update={"contestants": made.contestants[:1]})
    assert ngram_crossings(alone) == []
    assert crossing_text(alone) is None
