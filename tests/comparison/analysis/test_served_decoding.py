"""Ratios of decode times: between models that are alike, and between those that are not, on a machine that is busy."""

import math
import random
import re

import pytest
from tests.comparison import sample_results
from tests.conftest import DENSE, MOE, model_config

from moekit.comparison.analysis.baseline_comparison import hold_against
from moekit.comparison.analysis.contestant_sentences import contestant_sentences
from moekit.comparison.analysis.served_decoding import (
    decode_ratio,
    median_ms,
    same_total,
    token_spread,
)
from moekit.comparison.analysis.served_wording import SERVED_HEADINGS, served_sentences, served_table
from moekit.comparison.analysis.verdict_wording import NONE
from moekit.comparison.results_schema import ContestantResults, Decode, Results, Run, ServedSize
from moekit.config import ModelConfig

TOTAL = 1_000_000


def decode(ms: float, chance: random.Random, busy: list[float]) -> Decode:
    """Rounds of tokens of about `ms`, each as slow as the machine was in that round."""
    return Decode(
        engine="native", weight_type="bf16", weight_bytes=2_000_000, cache_bytes=65_536, context=64, threads=2,
        round_ms=[[ms * load * math.exp(chance.gauss(0, 0.03)) for _ in range(16)] for load in busy],
    )  # fmt: skip


def contestant(
    name: str, ms: float, *, seed: int = 0, rounds: int = 12, total: int = TOTAL, config: ModelConfig | None = None
) -> ContestantResults:
    chance = random.Random(f"{name} {seed}")
    busy = [1 + 4 * random.Random(f"{seed} {number}").random() for number in range(rounds)]
    runs = [
        sample_results.run(number, 2.0).model_copy(update={"decode": decode(ms, chance, busy)}) for number in range(3)
    ]
    config = config or model_config((DENSE,) * 2)
    found = sample_results.contestant(name, config, runs, total=total, active=total)
    size = ServedSize(config=config, params_total=total * 600, params_active=total, decode=decode(9 * ms, chance, busy))
    return found.model_copy(update={"served_size": size})


def results(*contestants: ContestantResults) -> Results:
    return sample_results.sample().model_copy(
        update={"contestants": list(contestants), "baseline": contestants[0].name}
    )


@pytest.mark.parametrize("at", ["trained", "grown"])
def test_a_busy_machine_is_in_both(at: str) -> None:
    """The machine is up to five times as slow, and the ratio is known within a few percent."""
    ratio = decode_ratio(contestant("a", 3.0), contestant("b", 2.0), at)  # type: ignore[arg-type]
    assert ratio is not None
    assert ratio.rounds == 12
    assert 1.46 < ratio.low <= ratio.ratio <= ratio.high < 1.54
    assert ratio.low < 1.5 < ratio.high


def test_models_that_are_alike_are_said_to_be() -> None:
    held = 0
    for seed in range(100):
        ratio = decode_ratio(contestant("a", 2.0, seed=seed), contestant("b", 2.0, seed=seed), "grown")
        assert ratio is not None
        held += ratio.low <= 1 <= ratio.high
    assert 89 <= held <= 99  # of 100 intervals of 95 %


def test_what_was_not_measured_together_has_no_ratio() -> None:
    old = contestant("old", 2.0)
    bare = old.model_copy(
        update={"runs": [run.model_copy(update={"decode": None}) for run in old.runs], "served_size": None}
    )
    new = contestant("new", 2.0)
    for at in ("trained", "grown"):
        assert decode_ratio(bare, new, at) is None  # type: ignore[arg-type]
        assert median_ms(bare, at) is None  # type: ignore[arg-type]
        assert token_spread(bare, at) is None  # type: ignore[arg-type]
    assert decode_ratio(contestant("short", 2.0, rounds=1), new, "grown") is None
    assert decode_ratio(contestant("short", 2.0, rounds=3), new, "trained") is None


def test_the_spread_is_each_models_own() -> None:
    """Seeds that differ in speed do not make tokens vary."""
    one = contestant("a", 2.0)
    runs = []
    for factor, run in zip((1.0, 2.0, 3.0), one.runs, strict=True):
        assert run.decode is not None
        even = run.decode.model_copy(update={"round_ms": [[factor] * 19 + [1.5 * factor] for _ in range(12)]})
        runs.append(run.model_copy(update={"decode": even}))
    assert token_spread(one.model_copy(update={"runs": runs}), "trained") == pytest.approx(1.0, abs=0.03)


def test_the_dense_model_of_a_mixtures_total_size_is_found_and_told() -> None:
    dense, mixture, large = (
        contestant("dense", 2.0, total=TOTAL // 3),
        contestant("moe", 2.5, config=model_config((MOE,) * 2)),
        contestant("dense-large", 6.0, total=int(1.02 * TOTAL)),
    )
    found = results(dense, mixture, large)
    for at in ("trained", "grown"):
        assert [(a.name, b.name) for a, b in same_total(found, at)] == [("moe", "dense-large")]  # type: ignore[arg-type]
    grown, grown_spread, trained, trained_spread = served_sentences(found)
    for spread in (grown_spread, trained_spread):
        assert re.search(r"in `dense`, 1\.\d\d times the median in `moe` and 1\.\d\d times", spread)
    assert grown.startswith("At a size that no cache holds, a token of `dense-large`, which has the total parameters")
    assert re.search(r"takes 2\.(39|4)", grown)
    assert trained.startswith("At the comparison's own size")
    rows = served_table(found, "grown")
    assert [row.name for row in rows] == ["dense", "moe", "dense-large"]
    assert rows[0].ratio == "1 (baseline)"
    assert rows[1].ratio.startswith("1.2")
    assert (rows[1].engine, rows[1].weights) == ("native, bf16", "2.00 MB")
    assert SERVED_HEADINGS.name == "Contestant"


def test_joules_are_said_where_every_model_was_told_its_own() -> None:
    dense, mixture = contestant("dense", 2.0), contestant("moe", 2.5, config=model_config((MOE,) * 2))
    found = results(dense, mixture)
    assert not [sentence for sentence in served_sentences(found) if " J " in sentence]
    runs = [
        run.model_copy(update={"decode": run.decode and run.decode.model_copy(update={"joules_per_token": joules})})
        for run, joules in zip(dense.runs, (1.0, 2.0, 3.0), strict=True)
    ]
    told = [one for one in served_sentences(results(dense.model_copy(update={"runs": runs}), mixture)) if " J " in one]
    assert told == [
        "At the comparison's own size, a token takes 2 J in `dense` (processors and memory, whatever else they did)."
    ]
    partly = [runs[0], *dense.runs[1:]]
    found = results(dense.model_copy(update={"runs": partly}), mixture)
    assert not [sentence for sentence in served_sentences(found) if " J " in sentence]


def test_the_verdict_states_both_with_their_intervals() -> None:
    dense, mixture = contestant("dense", 2.0), contestant("moe", 2.5, config=model_config((MOE,) * 2))
    against = hold_against(mixture, dense)
    assert against.decode == pytest.approx(1.25, rel=0.02)
    assert against.decode_grown == pytest.approx(1.25, rel=0.02)
    for interval in (against.decode_interval, against.decode_grown_interval):
        assert interval is not None
        assert interval.low < 1.25 < interval.high
    sentences = contestant_sentences("dense", against)
    assert re.search(r"1\.2\d times the time for a decoded token \(1\.2\d–1\.2\d\)", sentences)
    assert re.search(r"times that time \(1\.2\d–1\.2\d\) at a size that no cache holds", sentences)


def test_results_from_before_have_rows_without_figures() -> None:
    row = served_table(sample_results.sample(), "grown")[0]
    assert {row.engine, row.weights, row.cache, row.ms_per_token, row.spread} == {NONE}


def test_token_times_are_flat_whatever_version_measured_them() -> None:
    chance = random.Random(0)
    old = Run(seed=0, status="done", decode_ms=[1.0, 2.0])
    new = Run(seed=0, status="done", decode=decode(1.0, chance, [1.0, 1.0]))
    assert old.token_ms == [1.0, 2.0]
    assert len(new.token_ms) == 32
