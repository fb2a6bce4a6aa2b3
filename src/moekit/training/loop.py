"""The training loop: next-token prediction on micro-batches, measured on the way, resumable to the bit."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from moekit.core.errors import MoekitError, TrainingFailed
from moekit.models import LanguageModel
from moekit.moe import Sums
from moekit.training.average import new_average
from moekit.training.checkpoint import load_state, save_state
from moekit.training.schedule import learning_rate
from moekit.training.signals import stop_request
from moekit.training.step import new_optimizer, training_step
from moekit.training.step_log import CollapseWatch, StepLog, StepRecord, routing_by_layer
from moekit.training.training_config import TrainingConfig

# A spike: this many standard deviations above the mean of the losses in the window before it.
SPIKE_DEVIATIONS = 5.0
SPIKE_WINDOW = 50


class Interrupted(MoekitError):
    """Training was asked to stop; its state is saved."""

    exit_status = 130


class Point(BaseModel):
    """One measurement on the way.

    Attributes:
        bits_per_byte: bits per byte of held-out text.
        train_loss: bits per token, the mean since the last point.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    seconds: float
    bits_per_byte: float
    train_loss: float


class TrainingHistory(BaseModel):
    """How far a run has come, and what was seen on the way; all of it is in the checkpoint.

    Attributes:
        step: the steps that are done.
        seconds: the time spent in training steps alone.
        spikes: how often the loss jumped.
        points: what was measured on held-out text.
        recent_losses: the losses of the latest steps, bits per token, by which a spike is told.
        losses_since_point: the losses since the last point.
        collapse: what became of the routing.
    """

    step: int = 0
    seconds: float = 0.0
    spikes: int = 0
    points: list[Point] = []
    recent_losses: list[float] = []
    losses_since_point: list[float] = []
    collapse: CollapseWatch = Field(default_factory=CollapseWatch)


class StepReport(BaseModel):
    """The figures of a step that a progress display shows.

    Attributes:
        loss: bits per token.
        seconds: the time spent in training steps so far.
        load_max_over_mean: the load of the busiest expert over the mean load, in the worst MoE layer; None where there
            is no such layer.
        dead_experts: the experts that got no token, in the worst MoE layer; None where there is no such layer.
        warnings: what became wrong with the routing at this step, in words.
    """

    step: int
    loss: float
    seconds: float
    bits_per_byte: float | None = None
    load_max_over_mean: float | None = None
    dead_experts: int | None = None
    warnings: list[str] = []


class Trainer:
    """Trains a model step after step.

    Args:
        model: the model, trained in place.
        config: how it is trained.
        batch: gives the batch of a step, from 1 on, as the model's `loss` takes it: a pure function.
        evaluate: gives held-out bits per byte of the model.
        state_path: where the state is kept; if it exists, training goes on from there, and ends with the same bits as a
            run that was never stopped.
        log: gets a record of each step.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: TrainingConfig,
        batch: Callable[[int], Mapping[str, Tensor]],
        evaluate: Callable[[LanguageModel], float],
        state_path: Path,
        log: StepLog | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.batch, self.evaluate, self.state_path, self.log = batch, evaluate, state_path, log
        self.optimizer = new_optimizer(model, config)
        self.average = new_average(model)
        self.moe_configs = {
            place: layer.config for place, layer in zip(model.moe_places, model.moe_layers, strict=True)
        }
        self.history = TrainingHistory()
        if state_path.exists():
            self.history = TrainingHistory.model_validate(load_state(state_path, model, self.average, self.optimizer))

    @property
    def averaged(self) -> LanguageModel:
        """The model with averaged weights, which is what is measured; `model` itself has the latest."""
        return cast(LanguageModel, self.average.module)

    def run(self, on_step: Callable[[StepReport], None]) -> TrainingHistory:
        """Train to the last step, calling on_step after each.

        Raises:
            TrainingFailed: where the loss is not a number any more.
            Interrupted: on SIGINT or SIGTERM; the state is saved.
            MoekitError: where the state or the log cannot be written.
        """
        saved = time.monotonic()
        self.model.train()
        logging = self.log.going_on(self.history.step) if self.log else nullcontext()
        with logging, stop_request() as stop:
            while self.history.step < self.config.steps:
                on_step(self._step())
                if stop.is_set() or time.monotonic() - saved >= self.config.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                if stop.is_set():
                    raise Interrupted(f"Stopped after step {self.history.step}.")
        self.save()
        return self.history

    def save(self) -> None:
        """Write the state to disk, all of it or nothing."""
        save_state(self.state_path, self.model, self.average, self.optimizer, self.history.model_dump())

    def _step(self) -> StepReport:
        history = self.history
        batch = self.batch(history.step + 1)
        begin = time.perf_counter()
        rate = learning_rate(history.step + 1, peak=self.config.learning_rate, warmup_steps=self.config.warmup_steps)
        result = training_step(self.model, self.optimizer, batch, self.config, rate, self.average)
        loss = result.loss / math.log(2)
        history.seconds += time.perf_counter() - begin
        history.step += 1
        self._record_loss(loss)
        report = self._report(loss, rate, result.sums)
        if history.step in self.config.evaluate_at:
            report.bits_per_byte = self._measure()
        return report

    def _report(self, loss: float, rate: float, sums: Sequence[Sums]) -> StepReport:
        """Report the step just taken, and write it to the log."""
        step, seconds = self.history.step, self.history.seconds
        layers = routing_by_layer(self.moe_configs, sums)
        report = StepReport(step=step, loss=loss, seconds=seconds)
        if layers:
            report.load_max_over_mean = max(stats.load_max_over_mean for stats in layers.values())
            report.dead_experts = max(stats.dead_experts for stats in layers.values())
            report.warnings = self.history.collapse.see(step, self.moe_configs, layers)
        if self.log:
            self.log.write(StepRecord.of(step, loss, rate, seconds, layers))
        return report

    def _record_loss(self, loss: float) -> None:
        history = self.history
        if not math.isfinite(loss):
            raise TrainingFailed(f"the loss was no longer a number at step {history.step} of {self.config.steps}")
        if is_spike(loss, history.recent_losses):
            history.spikes += 1
        history.recent_losses = [*history.recent_losses, loss][-SPIKE_WINDOW:]
        history.losses_since_point.append(loss)

    def _measure(self) -> float:
        history = self.history
        with torch.no_grad():
            bits_per_byte = self.evaluate(self.averaged.eval())
        if not math.isfinite(bits_per_byte):
            raise TrainingFailed(f"the held-out loss was no longer a number at step {history.step}")
        history.points.append(
            Point(
                step=history.step,
                seconds=history.seconds,
                bits_per_byte=bits_per_byte,
                train_loss=statistics.fmean(history.losses_since_point),
            )
        )
        history.losses_since_point = []
        return bits_per_byte


def is_spike(loss: float, before: list[float]) -> bool:
    """Tell whether `loss` stands SPIKE_DEVIATIONS above the mean of a full window of losses before it."""
    if len(before) < SPIKE_WINDOW:
        return False
    return loss > statistics.fmean(before) + SPIKE_DEVIATIONS * statistics.stdev(before)
