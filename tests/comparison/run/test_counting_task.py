"""The run of an n-gram model, against models that are trained from scratch."""

import math

import numpy as np
import pytest
import torch

from moekit.comparison.run.counting_task import CountingTask, lookup_latency, params_by_part, table_bytes
from moekit.comparison.run.worker import new_task
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import new_plan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import Contestant, Size, own_contestants
from moekit.config import NGramConfig
from moekit.data import Corpus, is_scored, load_corpus, training_batch
from moekit.models import NGram
from moekit.training import StepReport

SMALL = Size(width=16, depth=2, heads=2, kv_heads=1, hidden=32, context=64, sequences=8)
STEPS = 24


def ignore(report: StepReport) -> None:
    """Hear of a step."""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """What every installation carries."""
    return load_corpus((), text_column="text", domain_column=None, say=lambda text: None)


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> ComparisonFolder:
    """A planned comparison of the contestants with a shape of their own."""
    made = ComparisonFolder(tmp_path_factory.mktemp("counted") / "run")
    contestants: list[Contestant] = list(own_contestants(SMALL).values())
    tokens = STEPS * SMALL.sequences * SMALL.context
    request = ComparisonRequest(
        contestants=contestants, baseline="gpt3", size_name="small", size=SMALL, seeds=2, command="", tokens=tokens
    )
    corpus.save(made.corpus)
    made.write_plan(new_plan(request))
    return made


def from_scratch(corpus: Corpus, steps: int, seed: int, order: int) -> NGram:
    """The model of the windows of the first steps, each window a sentence."""
    batches = [
        training_batch(corpus, step=step, sequences=SMALL.sequences, context=SMALL.context, seed=seed)
        for step in range(1, steps + 1)
    ]
    return NGram.train_bytes([bytes(row) for batch in batches for row in batch.tolist()], order=order)


def bits_per_byte(model: NGram, windows: dict[str, torch.Tensor]) -> float:
    bits, count = 0.0, 0
    for windows_NT in windows.values():
        scored_NT = is_scored(windows_NT[:, 1:])
        bits -= float(model.log_prob(windows_NT)[scored_NT].sum()) / math.log(2)
        count += int(scored_NT.sum())
    return bits / count


@pytest.mark.parametrize("seed", [0, 1])
def test_the_curve_is_that_of_models_trained_from_scratch(corpus: Corpus, folder: ComparisonFolder, seed: int) -> None:
    task = new_task(folder, "ngram", seed, ignore)
    assert isinstance(task, CountingTask)
    run = task.run()
    plan = folder.read_plan()
    config = plan.contestant("ngram").config
    assert isinstance(config, NGramConfig)
    assert [point.step for point in run.curve] == sorted(plan.training.evaluate_at)
    for point in (run.curve[0], run.curve[4], run.curve[-1]):
        model = from_scratch(corpus, point.step, seed, config.order)
        assert point.bits_per_byte == pytest.approx(bits_per_byte(model, task.windows(plan.curve_tokens)), rel=1e-12)
        assert point.flops == 0
        assert point.seconds > 0
    final = from_scratch(corpus, STEPS, seed, config.order)
    assert run.status == "done"
    assert run.tokens == STEPS * SMALL.sequences * SMALL.context
    assert run.bits_per_byte == pytest.approx(bits_per_byte(final, task.windows(plan.final_tokens)), rel=1e-12)
    assert 1 < run.bits_per_byte < 8
    assert set(run.bits_per_byte_by_domain) == {domain.name for domain in corpus.domains}
    assert run.curve[0].bits_per_byte > run.curve[-1].bits_per_byte
    assert run.params_by_part == params_by_part(final)
    assert run.weight_bytes == table_bytes(final)
    assert run.seconds == run.curve[-1].seconds
    # The text of a point is scored by the model of the point before it, which has not seen it.
    before, first, second = run.curve[-2], STEPS, run.curve[-2].step
    fresh = torch.cat([task.tokens(step) for step in range(second + 1, first + 1)])
    expected = -float(from_scratch(corpus, before.step, seed, config.order).log_prob(fresh).mean()) / math.log(2)
    assert run.curve[-1].train_loss == pytest.approx(expected, rel=1e-12)
    assert run.curve[0].train_loss == 8
    assert run.decode is not None
    assert run.decode.engine == "tables"
    assert len(run.token_ms) == SMALL.context // 2


def test_seeds_differ_in_their_windows(folder: ComparisonFolder) -> None:
    first, second = (new_task(folder, "ngram", seed, ignore).tokens(1) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, new_task(folder, "lstm", 0, ignore).tokens(1))


def test_parameters_are_probabilities_and_backoff_weights() -> None:
    """Of order 2: 259 words with both, and each pair that was seen with a probability alone."""
    model = NGram.train_bytes([b"abab", b"b"], order=2)
    # <s>a, ab, ba, b</s>, <s>b
    assert params_by_part(model) == {"1-grams": 2 * 259, "2-grams": 5}
    assert table_bytes(model) == 8 * (2 * 259 + 2 * 5)


def test_decoding_looks_at_all_that_the_model_can() -> None:
    """The greedy bytes are those of whole contexts, though only the last ones are looked up; for order 1 as well."""
    text = b"the cat sat on the mat and the cat sat on the hat " * 4
    for order in (1, 2, 4):
        model = NGram.train_bytes([text], order=order)
        seen = list(text[:20])
        for _ in range(12):
            rows = torch.tensor([[*seen, value] for value in range(256)])
            seen.append(int(model.log_prob(rows)[:, -1].argmax()))
        decoded: list[int] = []
        asked = model.log_prob

        def spy(rows: np.ndarray, asked=asked, decoded=decoded) -> torch.Tensor:  # type: ignore[no-untyped-def]
            found = asked(rows)
            decoded.append(int(found[:, -1].argmax()))
            return found

        model.log_prob = spy  # type: ignore[method-assign,assignment]
        milliseconds = lookup_latency(model, torch.tensor(list(text[:20])), 12)
        assert len(milliseconds) == 12
        assert all(value > 0 for value in milliseconds)
        assert decoded == seen[20:]


def test_what_fails_gives_a_run_that_says_why(folder: ComparisonFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> NGram:
        raise MemoryError

    monkeypatch.setattr(NGram, "train_bytes", exhausted)
    run = new_task(folder, "ngram", 0, ignore).run()
    assert (run.status, run.failure, run.curve) == ("failed", "it ran out of memory", [])


def test_it_is_calibrated_like_the_others(folder: ComparisonFolder) -> None:
    found = new_task(folder, "ngram", 0, ignore).calibrate()
    assert 0 < found.step_seconds < 1
    assert found.curve_seconds > 0
    assert found.fixed_seconds > found.curve_seconds
