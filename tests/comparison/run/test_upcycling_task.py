"""Contestants that are upcycled on the way: the phases cost what a dense run costs, and are one run in all figures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from moekit.comparison.analysis.baseline_comparison import hold_against
from moekit.comparison.report import render
from moekit.comparison.results_schema import Results, Run
from moekit.comparison.run import upcycling_task
from moekit.comparison.run.collected_results import collect_results
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.run.run_task import Tell
from moekit.comparison.run.serving.served_figures import ServedFigures
from moekit.comparison.run.training_task import TrainingTask
from moekit.comparison.run.upcycling_task import UpcyclingTask
from moekit.comparison.run.worker import new_task
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import measured_steps, new_plan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestant_selection import pick_contestant
from moekit.comparison.spec.contestants import SIZES, Contestant, Size, default_contestants
from moekit.comparison.spec.model_costs import costs_of
from moekit.comparison.spec.upcycling_phases import UpcyclingOptions, UpcyclingPhases
from moekit.config import DenseConfig, MoEConfig
from moekit.convert.dense_to_moe.upcycling import plan_upcycling
from moekit.data import Corpus, Document, build_corpus
from moekit.models import Decoder, LanguageModel, load
from moekit.training import StepReport, TrainingConfig

TINY = Size(width=8, depth=1, heads=2, kv_heads=1, hidden=16, context=16, sequences=2)
DENSE = Contestant(name="dense", layers=(DenseConfig(width=16),))
UPCYCLED = Contestant(name="upcycled", layers=DENSE.layers, upcycle={"experts": 4, "top_k": 2})
STEPS = 24


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    documents = [
        Document(domain="sums", name=f"{index}.txt", text=f"{index} + 1 = {index + 1};".encode() * 60)
        for index in range(12)
    ]
    return build_corpus(documents, name="tiny")


def prepared(corpus: Corpus, root: Path) -> ComparisonFolder:
    """A planned comparison whose runs save their state after each step and compute in float32."""
    folder = ComparisonFolder(root)
    corpus.save(folder.corpus)
    request = ComparisonRequest(
        contestants=(DENSE, UPCYCLED),
        baseline="dense",
        size_name="tiny",
        size=TINY,
        seeds=2,
        command="moekit compare",
        tokens=STEPS * TINY.sequences * TINY.context,
    )
    plan = new_plan(request)
    exact = plan.training.model_copy(update={"checkpoint_seconds": 0.0, "precision": "float32"})
    folder.write_plan(plan.model_copy(update={"curve_tokens": 256, "final_tokens": 256}).with_training(exact))
    return folder


def ignore(report: StepReport) -> None:
    """Hear of a step."""


def task(folder: ComparisonFolder, seed: int = 0, tell: Tell = ignore) -> UpcyclingTask:
    made = new_task(folder, "upcycled", seed, tell)
    assert isinstance(made, UpcyclingTask)
    return made


@pytest.fixture(scope="module")
def ran(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonFolder, dict[str, list[Run]]]:
    """Both contestants' runs of two seeds, in this process."""
    folder = prepared(corpus, tmp_path_factory.mktemp("ran") / "run")
    runs = {name: [new_task(folder, name, seed, ignore).run() for seed in (0, 1)] for name in ("dense", "upcycled")}
    return folder, runs


def phases(folder: ComparisonFolder) -> UpcyclingPhases:
    found = folder.read_plan().contestant("upcycled").upcycled
    assert found is not None
    return found


def figures(run: Run) -> dict[str, object]:
    """What must not depend on whether a run was stopped: all but times and memory."""
    return {
        "bits": run.bits_per_byte,
        "curve": [(point.step, point.flops, point.bits_per_byte, point.train_loss) for point in run.curve],
        "routing": run.routing,
    }


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.integers(1000, 9000), st.integers(1000, 9000))
def test_phases_take_the_flops_of_the_dense_model(steps: int, after: float, dense: int, moe: int) -> None:
    """To half a step; both train; and who is measured at the same FLOPs is measured as often."""
    training = TrainingConfig(
        steps=steps, sequences=1, micro_sequences=1, context=1, learning_rate=1, warmup_steps=50,
        evaluate_at=measured_steps(steps),
    )  # fmt: skip
    model = default_contestants(TINY)["dense"].config(TINY)
    made = UpcyclingPhases(dense=model, options=UpcyclingOptions(after=after), flops_per_token=(dense, moe)).scheduled(
        training
    )
    assert min(made.steps) >= 1
    spent = made.steps[0] * dense + made.steps[1] * moe
    assert made.flops(sum(made.steps), 1) == spent
    assert abs(spent - steps * dense) <= (moe / 2 if made.steps[1] > 1 else moe)
    assert abs(made.steps[0] - after * steps) <= 1
    first, second = made.trainings(training)
    assert (first.steps, second.steps) == made.steps
    assert first.steps in first.evaluate_at
    assert second.steps in second.evaluate_at
    assert max(first.evaluate_at) <= first.steps
    assert max(second.evaluate_at) <= second.steps
    assert (first.warmup_steps, second.warmup_steps) == (50, 20)
    at = sorted(made.flops(step, 1) for step in first.evaluate_at)
    at += sorted(made.flops(first.steps + step, 1) for step in second.evaluate_at)
    for step in training.evaluate_at:
        assert min(abs(flops - step * dense) for flops in at) <= max(dense, moe)


@pytest.mark.parametrize("size_name", ["xs", "s"])
def test_the_built_in_one_becomes_moe(size_name: str) -> None:
    """It starts as `dense` and ends in the shape of `moe`, so that all three cost the same."""
    size = SIZES[size_name]
    chosen, known = pick_contestant("upcycled", size), default_contestants(size)
    config, made = chosen.upcycled(size)
    assert config == known["moe"].config(size)
    assert chosen.config(size) == made.dense == known["dense"].config(size)
    assert made.flops_per_token[0] == costs_of(made.dense, size.context).flops_per_token
    assert made.flops_per_token[1] == costs_of(config, size.context).flops_per_token
    assert "upcycled" not in default_contestants(size)


def test_it_is_the_dense_run_until_it_is_converted(ran: tuple[ComparisonFolder, dict[str, list[Run]]]) -> None:
    """Bit for bit, and the converted model is the same function, so the curve has no jump."""
    folder, runs = ran
    for seed in (0, 1):
        dense, run = runs["dense"][seed], runs["upcycled"][seed]
        half = phases(folder).steps[0]
        assert half == STEPS // 2
        before = [(p.step, p.flops, p.bits_per_byte, p.train_loss) for p in dense.curve if p.step <= half]
        assert before == [(p.step, p.flops, p.bits_per_byte, p.train_loss) for p in run.curve if p.step <= half]
        assert [p.bits_per_byte for p in dense.curve if p.step > half] != [
            p.bits_per_byte for p in run.curve if p.step > half
        ]
        one = task(folder, seed)
        converted = load(folder.run("upcycled", seed) / "upcycled")
        assert isinstance(converted, LanguageModel)
        assert isinstance(converted.config.feed_forwards[0], MoEConfig)
        assert converted.config == one.config
        found = mean_bits_per_byte(converted, one.windows(256), "float32")
        assert found == pytest.approx(before[-1][2], rel=1e-6)


def test_both_phases_are_one_run(ran: tuple[ComparisonFolder, dict[str, list[Run]]]) -> None:
    folder, runs = ran
    made, (run, other) = phases(folder), runs["upcycled"]
    last = run.curve[-1]
    assert last.step == sum(made.steps)
    assert run.tokens == last.tokens == sum(made.steps) * 32
    assert run.tokens < STEPS * 32  # a token of the mixture costs more
    assert last.flops == pytest.approx(runs["dense"][0].curve[-1].flops, rel=0.5 / STEPS * 2)
    assert [p.seconds for p in run.curve] == sorted(p.seconds for p in run.curve)
    assert run.seconds == last.seconds
    assert run.bits_per_byte != other.bits_per_byte
    assert run.routing
    lines = [json.loads(line) for line in (folder.run("upcycled", 0) / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, last.step + 1))
    assert [bool(line["layers"]) for line in lines] == [step > made.steps[0] for step in range(1, last.step + 1)]
    rates, peak = [line["learning_rate"] for line in lines], folder.read_plan().training.learning_rate
    assert rates[made.steps[0]] == pytest.approx(peak / 20)  # it rises from nothing again, within 20 steps
    with safe_open(folder.state("upcycled", 0), framework="pt") as stored:
        assert int(stored.get_tensor("average.n_averaged")) == last.step  # the average goes on


def test_seeds_draw_their_own_routers(ran: tuple[ComparisonFolder, dict[str, list[Run]]]) -> None:
    folder, _ = ran
    models = [load(folder.run("upcycled", seed) / "upcycled") for seed in (0, 1)]
    assert all(isinstance(model, Decoder) for model in models)
    first, second = (model.moe_layers[0].router.weight for model in models)  # type: ignore[union-attr]
    assert not torch.equal(first, second)


def test_the_text_goes_on(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps whose text is asked for are 1, 2, … through both phases."""
    asked: list[int] = []
    tokens = TrainingTask.tokens
    monkeypatch.setattr(UpcyclingTask, "tokens", lambda self, step: asked.append(step) or tokens(self, step))
    folder = prepared(corpus, tmp_path / "run")
    task(folder).run()
    assert asked == list(range(1, sum(phases(folder).steps) + 1))


class Killed(BaseException):
    """Ends everything at once."""


Kill = Callable[[pytest.MonkeyPatch], Tell]


def killed_at(step: int) -> Kill:
    def tell(report: StepReport) -> None:
        if report.step == step:
            raise Killed

    return lambda patch: tell


def killed_before_conversion(patch: pytest.MonkeyPatch) -> Tell:
    def plan(*_: object) -> None:
        raise Killed

    patch.setattr(upcycling_task, "plan_upcycling", plan)
    return ignore


def killed_after_conversion(patch: pytest.MonkeyPatch) -> Tell:
    def start(*_: object) -> None:
        raise Killed

    patch.setattr(upcycling_task, "_go_on_averaging", start)
    return ignore


@pytest.mark.parametrize(
    "kill",
    [killed_at(7), killed_before_conversion, killed_after_conversion, killed_at(STEPS // 2 + 1), killed_at(17)],
    ids=["dense", "before conversion", "after conversion", "first step after", "upcycled"],
)
def test_a_killed_run_goes_on_to_the_same_figures(
    ran: tuple[ComparisonFolder, dict[str, list[Run]]],
    corpus: Corpus,
    tmp_path: Path,
    kill: Kill,
) -> None:
    """In either phase, and on either side of the conversion."""
    _, runs = ran
    folder = prepared(corpus, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        tell = kill(patch)
        with pytest.raises(Killed):
            task(folder, tell=tell).run()
    torch.manual_seed(99)  # another process has other random numbers
    assert figures(task(folder).run()) == figures(runs["upcycled"][0])
    lines = (folder.run("upcycled", 0) / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, sum(phases(folder).steps) + 1))


def test_a_second_phase_that_fails_keeps_the_first(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(trainer: upcycling_task.Trainer, before: int) -> None:
        for parameter in trainer.model.parameters():
            parameter.data.fill_(float("nan"))

    monkeypatch.setattr(upcycling_task, "_go_on_averaging", ruin)
    folder = prepared(corpus, tmp_path / "run")
    run = task(folder).run()
    assert run.status == "failed"
    assert "no longer a number" in (run.failure or "")
    assert [point.step for point in run.curve][-1] == STEPS // 2


def test_calibration_means_over_both_phases(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a step times the dense steps of the plan are the seconds of the run."""
    monkeypatch.setattr(UpcyclingTask, "step_seconds", lambda self, model: 10.0 if model.moe_layers else 1.0)
    folder = prepared(corpus, tmp_path / "run")
    found = task(folder).calibrate()
    dense, moe = phases(folder).steps
    assert found.step_seconds * STEPS == pytest.approx(dense + 10 * moe, abs=5.0)
    assert found.curve_seconds > 0
    assert found.fixed_seconds > found.curve_seconds
    assert not list(folder.run("upcycled", 0).glob("*"))


def test_results_and_report_say_both_phases(ran: tuple[ComparisonFolder, dict[str, list[Run]]]) -> None:
    folder, runs = ran
    plan = folder.read_plan()
    results: Results = collect_results(
        plan, Corpus.open(folder.corpus), runs, ServedFigures(), wall_seconds=1.0, trials=[]
    )
    dense, one = results.contestants
    assert dense.phases == []
    made = phases(folder)
    assert [(phase.name, phase.steps, phase.flops_per_token) for phase in one.phases] == [
        ("dense", made.steps[0], made.flops_per_token[0]),
        ("upcycled", made.steps[1], made.flops_per_token[1]),
    ]
    assert one.flops_per_token == made.flops_per_token[1]
    # Over the whole training: between the dense model's and the mixture's, as its curve has it.
    mean = hold_against(one, dense).flops
    assert mean == pytest.approx(one.curve[-1].flops / one.curve[-1].tokens / dense.flops_per_token)
    page = render(results)
    assert f"upcycled was trained on {one.phases[0].tokens} tokens as dense" in page
    assert "except for upcycled: its curve is the dense model's up to the conversion" in page
    alone = results.model_copy(update={"contestants": [dense]})
    assert "up to the conversion" not in render(alone)
    assert Results.model_validate_json(results.model_dump_json()) == results


def test_a_conversion_in_words_of_the_plan(tmp_path: Path) -> None:
    """What the plan says of the mixture is what the conversion of the trained folder makes."""
    config, made = UPCYCLED.upcycled(TINY)
    Decoder(made.dense).save(tmp_path / "dense")
    assert plan_upcycling(tmp_path / "dense", made.options).config == config
