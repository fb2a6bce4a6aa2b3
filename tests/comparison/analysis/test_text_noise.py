"""The interval that comes from the held-out text: against a known spread, and where it decides."""

from collections.abc import Sequence

import numpy as np
import pytest
from tests.comparison.sample_results import DENSE, MOE, contestant, model, results, run

from moekit.comparison.analysis.text_noise import text_spread
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.results_schema import CorpusDomain, Results, Run


def with_parts(one: Run, bits: Sequence[float]) -> Run:
    return one.model_copy(update={"bits_by_part": {"text": list(bits)}})


def test_the_interval_is_the_means() -> None:
    """Of 400 documents of equal length the mean difference has the standard error of their differences."""
    random = np.random.default_rng(0)
    size, length = 400, 1000
    base = random.normal(2000, 300, size)
    gap = random.normal(-20, 50, size)
    found = text_spread(
        [(with_parts(run(0, 2.0), base + gap), with_parts(run(0, 2.0), base))], {"text": [length] * size}
    )
    assert found is not None
    assert found.parts == size
    half = 1.96 * gap.std() / np.sqrt(size) / length
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(gap.mean() / length, abs=half / 5)


def test_what_is_not_known_is_not_told() -> None:
    one = with_parts(run(0, 2.0), [10.0, 20.0])
    assert text_spread([(one, one)], {"text": [5, 10, 15]}) is None
    assert text_spread([(one, run(0, 2.0))], {"text": [5, 10]}) is None
    assert text_spread([(one, one)], {"text": []}) is None
    assert text_spread([], {"text": [5, 10]}) is None


def on_text(gap_P: Sequence[float]) -> Results:
    """Two contestants, whose seeds agree on a difference that is spread over parts of the text as given."""
    bytes_P = [1000] * len(gap_P)
    base_P = [2000.0] * len(gap_P)
    moved = sum(gap_P) / sum(bytes_P)
    dense = [with_parts(run(seed, 2.0 + 0.01 * seed), base_P) for seed in range(3)]
    moe = [
        with_parts(run(seed, 2.0 + 0.0101 * seed + moved), [a + b for a, b in zip(base_P, gap_P, strict=True)])
        for seed in range(3)
    ]
    made = results(
        [
            contestant("dense", model([DENSE]), dense, total=1, active=1),
            contestant("moe", model([MOE]), moe, total=3, active=1),
        ],
        seeds=range(3),
    )
    domain = CorpusDomain(
        name="text", train_bytes=10**6, held_out_bytes=10**5, train_files=9, held_out_files=len(gap_P),
        unigram_bits_per_byte=4.0, measured_bytes=bytes_P, epochs=1.0,
    )  # fmt: skip
    return made.model_copy(update={"corpus": made.corpus.model_copy(update={"domains": [domain]})})


def test_text_that_may_turn_it_round_is_no_answer() -> None:
    """The seeds agree in both; where one document of twenty makes all of the difference, other text may not have it."""
    even = judge(on_text([-50.0, -40.0] * 10))
    assert even.record.reason == "decided"
    assert "by the text alone" in even.headline
    (check,) = [check for check in even.checks if check.code == "text_noise"]
    assert check.text.startswith(
        "The final figures are on 20,000 bytes, 20 % of the held-out text; drawn anew from its 20"
    )
    uneven = judge(on_text([2.0] * 19 + [-940.0]))
    assert uneven.record.reason == "within_text_noise"
    assert uneven.record.answer == "undecided"
    assert "other held-out text may turn round" in uneven.headline
