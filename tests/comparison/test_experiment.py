"""The whole experiment on a tiny scale: with real worker processes, stopped, killed, and with contestants that fail."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from moekit.comparison import compare, experiment
from moekit.comparison.results_schema import Results, Run, read_results
from moekit.comparison.run import side_by_side
from moekit.comparison.run.run_task import failure_text
from moekit.comparison.run.training_task import TrainingTask
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import new_plan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import Contestant, Size, own_contestants
from moekit.config import DenseConfig, ExpertChoiceConfig, HashConfig, MoEConfig, SoftmaxTopKConfig
from moekit.core.errors import TrainingFailed, UsageError
from moekit.core.progress import Advanced, Finished, ProgressEvent
from moekit.data import Corpus, Document, build_corpus
from moekit.inference import load_runner
from moekit.moe.routers import HashRouter
from moekit.training import Interrupted

TINY = Size(width=16, depth=2, heads=2, kv_heads=1, hidden=32, context=16, sequences=4)
DENSE = Contestant(name="dense", layers=(DenseConfig(width=32),))
MOE = Contestant(name="moe", layers=(MoEConfig(experts=4, expert_width=16, router=SoftmaxTopKConfig(top_k=2)),))
STEP = TINY.sequences * TINY.context


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two domains that a model can tell apart within a few steps."""
    documents = [
        Document(domain=domain, name=f"{index}.txt", text=f"{index} {word} {index * 7} ".encode() * 60)
        for domain, word in (("cats", "the cat sat on"), ("sums", "1 + 2 = 3;"))
        for index in range(12)
    ]
    return build_corpus(documents, name="tiny")


def request(contestants: Sequence[Contestant] = (DENSE, MOE), **changes: object) -> ComparisonRequest:
    values = {
        "contestants": contestants,
        "baseline": contestants[0].name,
        "size_name": "tiny",
        "size": TINY,
        "seeds": 1,
        "command": "moekit compare",
        "tokens": 30 * STEP,
    }
    return ComparisonRequest(**(values | changes))  # type: ignore[arg-type]


def figures(run: Run) -> dict[str, object]:
    """What must not depend on whether a run was stopped: all but times and memory."""
    return {
        "bits": run.bits_per_byte,
        "domains": run.bits_per_byte_by_domain,
        "curve": [(point.step, point.bits_per_byte, point.train_loss) for point in run.curve],
        "routing": run.routing,
        "experts": run.experts_by_domain,
    }


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonFolder, Results]:
    folder = ComparisonFolder(tmp_path_factory.mktemp("finished") / "run")
    return folder, experiment.start(request(seeds=2), corpus, folder)


def test_results_hold_what_the_schema_promises(finished: tuple[ComparisonFolder, Results], corpus: Corpus) -> None:
    folder, results = finished
    assert read_results(folder.results) == results
    assert folder.report.read_text(encoding="utf-8").startswith("<!doctype html>".casefold()) or folder.report.exists()
    assert results.corpus.sha256 == corpus.sha256
    assert results.settings.tokens == 30 * STEP
    for contestant in results.contestants:
        assert [run.status for run in contestant.runs] == ["done", "done"]
        assert contestant.bits_per_byte is not None
        assert 0 < contestant.bits_per_byte < 8
        assert contestant.peak_memory_bytes is not None
        assert contestant.peak_memory_bytes > 2 * contestant.params_total
        assert contestant.decode_ms_per_token_p95 >= contestant.decode_ms_per_token_median > 0  # type: ignore[operator]
        assert [run.decode.engine for run in contestant.runs] == ["native", "native"]  # type: ignore[union-attr]
        assert load_runner(folder.model(contestant.name, 0)).runner.context == TINY.context
        assert set(contestant.bits_per_byte_by_domain) == {"cats", "sums"}
        last = contestant.curve[-1]
        assert last.tokens == 30 * STEP
        assert last.flops == pytest.approx(last.tokens * contestant.flops_per_token)
        assert contestant.runs[0].bits_per_byte != contestant.runs[1].bits_per_byte
        for seed in (0, 1):
            steps = [
                json.loads(line)
                for line in (folder.run(contestant.name, seed) / "steps.jsonl").read_text().splitlines()
            ]
            assert [step["step"] for step in steps] == list(range(1, 31))
            assert [layer["layer"] for layer in steps[-1]["layers"]] == ([0, 1] if contestant.name == "moe" else [])
    keys = json.loads(folder.results.read_text())
    assert {"corpus", "machine", "contestants"} <= keys.keys()
    for key in ("name", "params_total", "params_active", "flops_per_token", "train_tokens_per_second", "seconds",
                "peak_memory_bytes", "bits_per_byte", "bits_per_byte_by_domain", "decode_ms_per_token_median",
                "decode_ms_per_token_p95", "curve"):  # fmt: skip
        assert key in keys["contestants"][0]


def test_contestants_see_the_same_data_and_repeat(
    finished: tuple[ComparisonFolder, Results], corpus: Corpus, tmp_path: Path
) -> None:
    """A second comparison gives the same figures to the last bit."""
    _, results = finished
    again = experiment.start(request(seeds=2), corpus, ComparisonFolder(tmp_path / "again"))
    for a, b in zip(results.contestants, again.contestants, strict=True):
        assert [figures(run) for run in a.runs] == [figures(run) for run in b.runs]


def test_hash_routers_are_evened_out_by_the_text(corpus: Corpus, tmp_path: Path) -> None:
    """No expert gets more of the training's bytes than the commonest byte; every process finds the same table."""
    folder = ComparisonFolder(tmp_path / "run")
    hashed = Contestant(name="hash", layers=(MoEConfig(experts=4, expert_width=16, router=HashConfig()),))
    corpus.save(folder.corpus)
    folder.write_plan(new_plan(request((hashed,))))
    frequencies = torch.from_numpy(corpus.byte_frequencies())
    assert float(frequencies.sum()) == pytest.approx(1.0)
    tables = [
        TrainingTask(folder, "hash", seed, lambda report: None).model.moe_layers[0].router.expert_V
        for seed in (0, 0, 1)
    ]
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])
    loads = torch.bincount(tables[0], weights=frequencies, minlength=4)
    drawn = HashRouter(16, 4, HashConfig(), 256).expert_V
    most_drawn = torch.bincount(drawn, weights=frequencies, minlength=4).max()
    assert float(loads.max()) == pytest.approx(float(frequencies.max()))
    assert float(loads.max()) < 0.6 * float(most_drawn)


def test_a_router_that_sees_later_tokens_gets_a_caveat(corpus: Corpus, tmp_path: Path) -> None:
    leaky = ExpertChoiceConfig(mean_experts=2, leaky=True)
    chosen = Contestant(name="choice", layers=(MoEConfig(experts=4, expert_width=16, router=leaky),))
    folder = ComparisonFolder(tmp_path / "run")
    results = experiment.start(request((DENSE, chosen)), corpus, folder)
    assert [one.caveat is None for one in results.contestants] == [True, False]
    assert results.contestants[1].runs[0].status == "done"
    assert "choice is not comparable" in re.sub("<.*?>", "", folder.report.read_text(encoding="utf-8"))


# A comparison in a process of its own, so that it can be killed: its folder, then how many tokens.
# Ctrl-C is listened to, also where whoever started the tests has it ignored, as shells do for work in the background.
_SCRIPT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from moekit.comparison import experiment
from moekit.core.errors import MoekitError
try:
    experiment.resume(sys.argv[1])
except MoekitError as error:
    sys.exit(error.exit_status)
"""


def prepare(
    corpus: Corpus, folder: ComparisonFolder, steps: int, contestants: Sequence[Contestant] = (DENSE, MOE)
) -> None:
    """A folder with a plan that saves its state after every step, and nothing done yet."""
    corpus.save(folder.corpus)
    plan = new_plan(request(contestants, tokens=steps * STEP))
    training = plan.training.model_copy(update={"checkpoint_seconds": 0.0})
    folder.write_plan(plan.model_copy(update={"training": training}))


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_lstm_and_ngram_go_on_to_the_same_figures(corpus: Corpus, tmp_path: Path) -> None:
    """The LSTM from its saved state, the n-gram model from the start."""
    contestants = [own_contestants(TINY)[name] for name in ("lstm", "ngram")]
    whole, parts = ComparisonFolder(tmp_path / "whole"), ComparisonFolder(tmp_path / "parts")
    for folder in (whole, parts):
        prepare(corpus, folder, steps=120, contestants=contestants)
    expected = experiment.resume(whole.root)
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(parts.root)])
    wait_for(parts.state("lstm", 0), process)
    time.sleep(0.1)
    process.kill()
    process.wait(timeout=30)
    assert not parts.result("ngram", 0).exists()
    time.sleep(0.5)
    got = experiment.resume(parts.root)
    for a, b in zip(expected.contestants, got.contestants, strict=True):
        assert [run.status for run in a.runs] == ["done"]
        assert [figures(run) for run in a.runs] == [figures(run) for run in b.runs]
    ngram = got.contestants[1]
    assert ngram.flops_per_token == ngram.curve[-1].flops == 0
    assert ngram.params_total == sum(ngram.params_by_part.values()) > 259
    assert ngram.weight_bytes == ngram.runs[0].weight_bytes
    assert read_results(parts.results) == got


def test_results_from_before_there_were_kinds_are_read(
    finished: tuple[ComparisonFolder, Results], tmp_path: Path
) -> None:
    folder, results = finished
    old = json.loads(folder.results.read_text(encoding="utf-8")) | {"schema_version": 2}
    for contestant in old["contestants"]:
        del contestant["config"]["kind"]
        for run in contestant["runs"]:
            del run["params_by_part"], run["weight_bytes"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    assert read_results(path) == results.model_copy(update={"schema_version": 2})
    plan = json.loads(folder.plan.read_text(encoding="utf-8"))
    del plan["optional"]
    for entry in plan["contestants"]:
        del entry["config"]["kind"]
    older = ComparisonFolder(tmp_path / "older")
    older.root.mkdir()
    older.plan.write_text(json.dumps(plan), encoding="utf-8")
    assert older.read_plan() == folder.read_plan()


def test_a_worker_that_is_killed_fails_alone(corpus: Corpus, tmp_path: Path) -> None:
    """As the system does when memory runs out; the other contestant goes on, and resuming tries again."""
    folder = ComparisonFolder(tmp_path / "run")
    prepare(corpus, folder, steps=100)

    def kill(event: ProgressEvent) -> None:
        if isinstance(event, Advanced) and event.task == "dense, seed 0":
            subprocess.run(["pkill", "-KILL", "-f", f"moekit.comparison.run.worker {folder.root} dense"], check=False)

    results = experiment.resume(folder.root, progress=kill)
    dense, moe = results.contestants
    assert dense.runs[0].status == "failed"
    assert "ran out of memory" in (dense.runs[0].failure or "")
    assert dense.bits_per_byte is None
    assert moe.runs[0].status == "done"
    assert experiment.resume(folder.root).contestants[0].runs[0].status == "done"


def test_a_contestant_that_diverges_is_marked(corpus: Corpus, tmp_path: Path) -> None:
    """With weights that overflow nothing trains; the comparison still ends with a report."""
    folder = ComparisonFolder(tmp_path / "run")
    prepare(corpus, folder, steps=60)
    plan = folder.read_plan()
    wild = plan.contestant("moe").model_copy(
        update={"config": plan.contestant("moe").config.model_copy(update={"init_std": 1e38})}
    )
    folder.write_plan(plan.model_copy(update={"contestants": (plan.contestant("dense"), wild)}))
    results = experiment.resume(folder.root)
    assert [c.runs[0].status for c in results.contestants] == ["done", "failed"]
    assert "no longer a number" in (results.contestants[1].runs[0].failure or "")
    assert "no longer a number" in folder.report.read_text(encoding="utf-8")


def test_failures_in_words() -> None:
    assert failure_text(TrainingFailed("x")) == "x"
    assert failure_text(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")) == "it ran out of memory"
    with pytest.raises(ZeroDivisionError):
        failure_text(ZeroDivisionError())


@pytest.mark.alone
def test_a_budget_becomes_steps(corpus: Corpus, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "run")
    asked = request(contestants=(DENSE,), tokens=None, budget_seconds=25.0)
    began = time.monotonic()
    results = experiment.start(asked, corpus, folder)
    assert results.settings.tokens >= 100 * STEP
    assert time.monotonic() - began < 40


def test_a_budget_whose_planning_was_cut_off_is_planned_again(corpus: Corpus, tmp_path: Path) -> None:
    """A stop while the speed is measured leaves a plan without its steps; resuming must not train that plan."""
    folder = ComparisonFolder(tmp_path / "run")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    asked = request(contestants=(DENSE,), tokens=None, budget_seconds=25.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "calibrate", stopped)
        with pytest.raises(KeyboardInterrupt):
            experiment.start(asked, corpus, folder)
    assert folder.read_plan().training.steps == 1
    results = experiment.resume(folder.root)
    assert results.settings.tokens >= 100 * STEP
    assert folder.read_plan().training.steps * STEP == results.settings.tokens


def test_an_impossible_budget_trains_nothing(corpus: Corpus, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "run")
    with pytest.raises(UsageError, match="need at least"):
        experiment.start(request(tokens=None, budget_seconds=0.5), corpus, folder)
    assert not folder.state("dense", 0).exists()
    assert not folder.plan.exists()


def test_a_default_budget_that_is_too_small_is_exceeded(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody asked for it: on a slow machine the comparison takes longer, and says so."""
    caplog.set_level(logging.INFO, "moekit.comparison")
    asked = request(contestants=(DENSE,), tokens=None, budget_seconds=0.5, budget_asked=False)
    results = experiment.start(asked, corpus, ComparisonFolder(tmp_path / "run"))
    assert results.settings.tokens == 100 * STEP
    assert any("default budget" in text for text in caplog.messages)


def test_those_that_nobody_asked_for_are_left_out_where_there_is_no_room(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "moekit.comparison")
    folder = ComparisonFolder(tmp_path / "run")
    optional = [own_contestants(TINY)["gpt3"]]
    asked = request((DENSE,), optional=optional, tokens=None, budget_seconds=0.5, budget_asked=False)
    results = experiment.start(asked, corpus, folder)
    assert [one.name for one in results.contestants] == ["dense"]
    assert any(
        text.startswith("Left out: gpt3. The budget has to leave every run 200 steps") for text in caplog.messages
    )
    assert folder.read_plan().optional == ()
    assert [one.name for one in experiment.resume(folder.root).contestants] == ["dense"]


def test_those_that_nobody_asked_for_take_part_where_there_is_room(corpus: Corpus, tmp_path: Path) -> None:
    """Without a budget there is always room; with one, the plan says who may be left out until that is settled."""
    optional = [own_contestants(TINY)["gpt3"]]
    unlimited = new_plan(request((DENSE,), optional=optional))
    assert ([entry.name for entry in unlimited.contestants], unlimited.optional) == (["dense", "gpt3"], ())
    limited = new_plan(request((DENSE,), optional=optional, tokens=None, budget_seconds=60.0))
    assert ([entry.name for entry in limited.contestants], limited.optional) == (["dense", "gpt3"], ("gpt3",))


def test_a_corpus_too_small_for_a_batch_trains_nothing(corpus: Corpus, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "run")
    large = Size(width=16, depth=2, heads=2, kv_heads=1, hidden=32, context=8192, sequences=4)
    with pytest.raises(UsageError, match="context"):
        experiment.start(request(size=large), corpus, folder)
    assert not os.path.exists(folder.root)


def test_long_runs_are_measured_on_more_text() -> None:
    """An eighth of what a run was trained on, within limits, whatever the number of domains."""
    plan = new_plan(request(tokens=1000 * STEP))
    assert plan.with_final_text(2).final_tokens == 16384
    long = plan.model_copy(update={"training": plan.training.model_copy(update={"steps": 2**21 // STEP})})
    assert [long.with_final_text(domains).final_tokens for domains in (1, 4, 8, 64)] == [65536, 65536, 32768, 16384]


def test_one_call_does_it_all(tmp_path: Path) -> None:
    """From text in a folder to results and report, with progress; a second call in the same folder is refused."""
    texts = tmp_path / "texts"
    for domain in ("cats", "sums"):
        (texts / domain).mkdir(parents=True)
        for index in range(12):
            (texts / domain / f"{index}.txt").write_text(f"{index} {domain} sat on a mat. " * 300)
    events: list[ProgressEvent] = []
    own = Contestant(
        name="own",
        layers=(MoEConfig(experts=2, expert_width=32, router=SoftmaxTopKConfig(top_k=1, renormalize=False)),),
    )
    found = compare(
        tmp_path / "out", data=[texts], contestants=["ngram", own], baseline="own", seeds=1, tokens=3 * 2048,
        progress=events.append,
    )  # fmt: skip
    assert isinstance(found, Results)
    assert found.baseline == "own"
    assert read_results(tmp_path / "out" / "results.json") == found
    assert (tmp_path / "out" / "report.html").exists()
    ended = [event.task for event in events if isinstance(event, Finished)]
    assert sorted(ended[:2]) == ["ngram, seed 0", "own, seed 0"]
    assert ended[2:] == ["all runs"]
    steps = [event for event in events if isinstance(event, Advanced) and event.task == "own, seed 0"]
    assert [event.done for event in steps] == [1, 2, 3]
    assert all(event.note.startswith("loss ") for event in steps)
    with pytest.raises(UsageError, match="holds a comparison already"):
        compare(tmp_path / "out", data=[texts], seeds=1, tokens=3 * 2048)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget_seconds": 60.0, "tokens": 1000}, "exclude each other"),
        ({"size": "xxl"}, "no size 'xxl'"),
        ({"contestants": []}, "no contestant"),
        ({"contestants": ["dense", "mo"]}, "did you mean 'moe'"),
        ({"contestants": ["dense"], "baseline": "lstm"}, "baseline 'lstm'"),
        ({"contestants": [DENSE, DENSE]}, "there twice"),
        ({"contestants": "nothing.yaml"}, "nothing.yaml"),
    ],
)
def test_wrong_arguments_are_found_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        compare(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_rates_are_searched_first_and_a_stopped_search_goes_on(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tokens=8 * STEP, tune=True)
    whole = ComparisonFolder(tmp_path / "whole")
    results = experiment.start(asked, corpus, whole)

    stopped = ComparisonFolder(tmp_path / "stopped")
    begun: list[object] = []

    def train_and_stop(*arguments: object, **others: object) -> None:
        begun.append(arguments)
        raise Interrupted("Stopped.")

    with monkeypatch.context() as patch:
        patch.setattr(side_by_side, "train", train_and_stop)
        with pytest.raises(Interrupted):
            experiment.start(asked, corpus, stopped)
    assert begun
    assert experiment.resume(stopped.root).settings.trials == [
        trial.model_copy(update={"seconds": again.seconds})
        for trial, again in zip(results.settings.trials, read_results(stopped.results).settings.trials, strict=True)
    ]

    for contestant in results.contestants:
        trials = {
            trial.rate_factor: trial.bits_per_byte
            for trial in results.settings.trials
            if trial.contestant == contestant.name and trial.bits_per_byte is not None
        }
        assert len(trials) == 4
        best = min(trials, key=lambda factor: trials[factor])
        assert contestant.learning_rate == pytest.approx(best * results.settings.learning_rate)
        run = results.settings.seeds[0]
        steps = (whole.run(contestant.name, run) / "steps.jsonl").read_text().splitlines()
        warmed_up = new_plan(asked).training.warmup_steps
        assert json.loads(steps[-1])["learning_rate"] == pytest.approx(contestant.learning_rate * 8 / warmed_up)
    assert results.settings.tuning_seconds > 0
    assert results.settings.learning_rate_rule.startswith("searched for each contestant")
