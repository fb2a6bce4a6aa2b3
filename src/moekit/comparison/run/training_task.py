"""The run of a model that is trained by gradient descent, the same for every kind of model."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from moekit.comparison.results_schema import Run
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.run.run_task import FAILURES, RunTask, Tell, failure_text
from moekit.comparison.run.serving.trained_models import save_served
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.model_costs import ContestantConfig
from moekit.core import hardware
from moekit.models import LanguageModel, build
from moekit.moe import without_capacity
from moekit.moe.routers import HashRouter
from moekit.training import StepLog, Trainer, TrainingConfig, TrainingHistory

# The first steps, which compile and fill caches, are not counted.
_CALIBRATION_WARMUP, _CALIBRATION_STEPS = 5, 12


class TrainingTask(RunTask):
    """One contestant with one seed, trained by gradient descent, the same for every kind of model."""

    def __init__(self, folder: ComparisonFolder, contestant: str, seed: int, tell: Tell) -> None:
        super().__init__(folder, contestant, seed, tell)
        torch.manual_seed(seed)
        self.model = build(self.first_config)
        self._balance_hash_routers()
        self.logging = {"tensorboard": self.plan.tensorboard}
        self.start_seconds = time.perf_counter() - hardware.process_started()

    @property
    def first_config(self) -> ContestantConfig:
        """The configuration of the model that the run starts with."""
        return self.config

    def run(self) -> Run:
        """Train (or go on training) and measure; a training that fails gives a Run that says why."""
        log = StepLog(self.folder.run(self.contestant, self.seed), **self.logging)
        trainer = self.trainer(self.model, self.training, self.folder.state(self.contestant, self.seed), log)
        try:
            history = trainer.run(self.tell)
        except FAILURES as error:
            return self.record(trainer.history, failure=failure_text(error))
        return self.measured(trainer, history)

    def trainer(
        self, model: LanguageModel, training: TrainingConfig, state: Path, log: StepLog, before: int = 0
    ) -> Trainer:
        """Make a trainer that takes the steps after `before` ones, on the text that belongs to them."""
        windows = self.windows(self.plan.curve_tokens)
        return Trainer(
            model,
            training,
            lambda step: {"tokens": self.tokens(before + step)},
            lambda model: mean_bits_per_byte(model, windows, training.precision),
            state,
            log,
        )

    def measured(self, trainer: Trainer, history: TrainingHistory) -> Run:
        """Say what a training that came to its end tells, the final measurements included."""
        peak = self.peak_memory_bytes()
        found = self.final_figures(trainer.averaged)
        as_served = bits_as_served(trainer.averaged, self.windows(self.plan.final_tokens), self.training.precision)
        save_served(trainer.averaged, self.folder.model(self.contestant, self.seed))
        return self.record(history, failure=None).model_copy(
            update={
                "peak_memory_bytes": peak,
                **vars(found),
                "bits_per_byte_as_served": as_served,
            }
        )

    def calibrate(self) -> Calibrated:
        """Time a few training steps and one measurement; the model is thrown away."""
        step_seconds = self.step_seconds(self.model)
        measuring = time.perf_counter()
        mean_bits_per_byte(self.model.eval(), self.windows(self.plan.curve_tokens), self.training.precision)
        curve_seconds = time.perf_counter() - measuring
        return Calibrated(
            step_seconds=step_seconds,
            curve_seconds=curve_seconds,
            fixed_seconds=self.start_seconds + curve_seconds * self.plan.final_tokens / self.plan.curve_tokens,
            memory_bytes=hardware.peak_resident_bytes(),
        )

    def keep_company(self) -> None:
        """Take training steps until this process is told to stop."""
        self._take_steps(build(self.config), sys.maxsize, self.tell)

    def step_seconds(self, model: LanguageModel) -> float:
        """Time a few training steps with all that a run does for each; gives their median."""
        ends: list[float] = []
        self._take_steps(model, _CALIBRATION_STEPS, lambda report: ends.append(time.perf_counter()))
        return float(np.median(np.diff(ends)[_CALIBRATION_WARMUP - 1 :]))

    def _take_steps(self, model: LanguageModel, steps: int, tell: Tell) -> None:
        """Train, measuring nothing on the way, in a folder that is thrown away."""
        training = self.training.model_copy(update={"steps": steps, "evaluate_at": frozenset()})
        with self.thrown_away() as place:
            self.trainer(model, training, place / "state.safetensors", StepLog(place)).run(tell)

    def _balance_hash_routers(self) -> None:
        """Even out their loads by how often the training meets each byte."""
        routers = [layer.router for layer in self.model.moe_layers if isinstance(layer.router, HashRouter)]
        if routers:
            frequency_V = torch.from_numpy(self.corpus.byte_frequencies())
            for router in routers:
                router.balance(frequency_V)


def bits_as_served(
    model: LanguageModel, windows: dict[str, torch.Tensor], precision: hardware.Precision
) -> float | None:
    """Give bits per byte over all windows where no expert is ever full; None where none can be anyway."""
    if all(layer.router.capacity_factor is None for layer in model.moe_layers):
        return None
    with without_capacity(model):
        return mean_bits_per_byte(model, windows, precision)
