"""What routers do in training: figures that do not depend on how a batch is cut, a log that survives, a warning."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moekit.config import ModelConfig, MoEConfig, SigmoidBiasConfig, SoftmaxTopKConfig
from moekit.core.errors import MoekitError
from moekit.models import Decoder
from moekit.moe import RoutingStats
from moekit.training import (
    CollapseWatch,
    Interrupted,
    StepLog,
    StepRecord,
    StepReport,
    Trainer,
    TrainingConfig,
    new_optimizer,
    routing_by_layer,
    training_step,
)

MOE = MoEConfig(experts=8, expert_width=16, router=SoftmaxTopKConfig(top_k=2))
SIGMOID = MoEConfig(experts=8, expert_width=16, router=SigmoidBiasConfig(top_k=2))


def batch(step: int) -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, 256, (8, 17), generator=torch.Generator().manual_seed(step))}


def config(**changes: object) -> TrainingConfig:
    values = {
        "steps": 6, "sequences": 8, "micro_sequences": 8, "context": 16, "learning_rate": 1e-2, "warmup_steps": 3,
    }  # fmt: skip
    return TrainingConfig.model_validate(values | changes)


def trainer(model: ModelConfig, folder: Path, *, tensorboard: bool = False, **changes: object) -> Trainer:
    torch.manual_seed(1)
    log = StepLog(folder, tensorboard=tensorboard)
    return Trainer(Decoder(model), config(**changes), batch, lambda model: 1.0, folder / "state", log)


def stop_at(step: int) -> Callable[[StepReport], None]:
    def listen(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return listen


def ignore(report: StepReport) -> None:
    pass


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def stats(**changes: float) -> RoutingStats:
    values = {
        "load_max_over_mean": 1.1, "load_entropy": 0.9, "dead_experts": 0, "dropped_share": 0.0,
        "mean_top_score": 0.5, "logit_norm": 1.0,
    }  # fmt: skip
    return RoutingStats(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("moe", [MOE, SIGMOID], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("micro", [1, 2])
def test_figures_do_not_depend_on_how_a_batch_is_computed(
    make_config: Callable[..., ModelConfig], moe: MoEConfig, micro: int, recompute: bool
) -> None:
    """Eight micro-batches (or four) against one, with and without recomputation, over several steps."""
    plan = make_config((moe, moe))
    figures = []
    for changes in ({}, {"micro_sequences": micro, "recompute": recompute}):
        torch.manual_seed(3)
        model, settings = Decoder(plan).double(), config(**changes)
        optimizer = new_optimizer(model, settings)
        steps = [training_step(model, optimizer, batch(step), settings, rate=1e-3) for step in (1, 2, 3)]
        figures.append([routing_by_layer((0, 1), step.sums) for step in steps])
    for whole, parts in zip(*figures, strict=True):
        assert whole.keys() == parts.keys() == {0, 1}
        for layer in whole:
            assert parts[layer].dead_experts == whole[layer].dead_experts
            assert asdict(parts[layer]) == pytest.approx(asdict(whole[layer]), rel=1e-6)
            assert parts[layer].load_max_over_mean == whole[layer].load_max_over_mean  # a ratio of whole numbers


def test_figures_go_by_the_layer_in_the_model(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    reports: list[StepReport] = []
    trainer(make_config(), tmp_path).run(reports.append)  # a dense layer, then one with experts
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert {layer["layer"] for line in logged for layer in line["layers"]} == {1}
    assert logged[0]["learning_rate"] == pytest.approx(1e-2 / 3)
    assert [line["loss"] for line in logged] == [report.loss for report in reports]
    assert [line["seconds"] for line in logged] == [report.seconds for report in reports]
    assert [line["layers"][0]["dead_experts"] for line in logged] == [report.dead_experts for report in reports]
    assert all(report.load_max_over_mean >= 1 for report in reports)  # type: ignore[operator]


def test_a_dense_model_has_no_figures(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    dense = make_config().feed_forwards[0]
    reports: list[StepReport] = []
    trainer(make_config((dense,)), tmp_path).run(reports.append)
    assert reports[0].load_max_over_mean is None
    assert lines(tmp_path)[0]["layers"] == []


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4}\nnonsense\n{"step": 5}\n'])
def test_a_log_goes_on_where_the_run_does(make_config: Callable[..., ModelConfig], tmp_path: Path, tail: str) -> None:
    """What a killed run logged beyond its checkpoint goes, a line that was cut off too."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(make_config(), whole).run(ignore)
    with pytest.raises(Interrupted):
        trainer(make_config(), parts).run(stop_at(3))
    with (parts / "steps.jsonl").open("a") as log:
        log.write(tail)
    trainer(make_config(), parts).run(ignore)
    for a, b in zip(lines(whole), lines(parts), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


def test_a_log_without_a_checkpoint_starts_anew(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text('{"step":1}\n{"step":2}\n')
    trainer(make_config(), tmp_path, steps=1).run(ignore)
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert "loss" in lines(tmp_path)[0]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    log = StepLog(tmp_path)
    record = StepRecord(step=1, loss=1.0, learning_rate=1.0, seconds=1.0, layers=[])
    with log.going_on(0), Path("/dev/full").open("ab", buffering=0) as full:
        assert log._file is not None
        log._file.close()
        log._file = full
        with pytest.raises(MoekitError, match=r"The disk is full while writing .*steps\.jsonl"):
            log.write(record)


def test_tensorboard_events(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    """A resumed run purges what a killed one wrote beyond its checkpoint."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Interrupted):
        trainer(make_config(), tmp_path, tensorboard=True).run(stop_at(4))
    state = (tmp_path / "state").read_bytes()
    trainer(make_config(), tmp_path, tensorboard=True, steps=5).run(ignore)
    (tmp_path / "state").write_bytes(state)  # as if it had been killed after step 5
    for file in tmp_path.glob("events.*"):
        os.utime(file, (1, 1))
    trainer(make_config(), tmp_path, tensorboard=True).run(ignore)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"loss", "learning_rate", "dead_experts/layer 1", "logit_norm/layer 1"}
    logged = {line["step"]: line["loss"] for line in lines(tmp_path)}
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("loss")} == logged
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_collapse_is_told_once_a_layer() -> None:
    well, ill = stats(), stats(dead_experts=6)
    watch, told = CollapseWatch(), []
    for step in range(1, 101):
        # Layer 0 falls ill at step 11, for good; layer 1 never for twenty steps on end.
        found = {0: ill if step > 10 else well, 1: well if step % 20 == 0 else ill}
        told += [(step, text) for text in watch.see(step, {0: MOE, 1: MOE}, found)]
        watch = CollapseWatch.model_validate_json(watch.model_dump_json())  # as through a checkpoint
    assert told == [(30, "layer 0: 6 of 8 experts get no tokens (step 30)")]
    assert watch.warnings == {0: told[0][1]}


def test_a_warning_survives_a_stop(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    """A router whose choices are forced to two experts is found out after twenty steps, ten on each side of a stop."""
    plan = make_config((MOE,))

    def forced(steps: int) -> Trainer:
        run = trainer(plan, tmp_path, steps=steps, learning_rate=1e-9)
        bias = torch.zeros(8).index_fill(0, torch.tensor([2, 5]), 100.0)
        router = run.model.moe_layers[0].router
        router.logits = lambda x_TD: x_TD @ router.weight.T + bias  # type: ignore[method-assign]
        return run

    with pytest.raises(Interrupted):
        forced(25).run(stop_at(10))
    reports: list[StepReport] = []
    history = forced(25).run(reports.append)
    assert [(report.step, report.warnings) for report in reports if report.warnings] == [
        (20, ["layer 0: 6 of 8 experts get no tokens (step 20)"])
    ]
    assert history.collapse.warnings == {0: "layer 0: 6 of 8 experts get no tokens (step 20)"}
