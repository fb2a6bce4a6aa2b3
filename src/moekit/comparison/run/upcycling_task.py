"""The run of an upcycled contestant: a dense model is trained, converted through its folder, and trained on.

The run's folder gets `dense.safetensors`, the state of the first phase; `dense` and `upcycled`, the models before and
after the conversion; and `state.safetensors`, the state of the second phase, as that of everyone's only phase. Steps
are counted through both, also in `steps.jsonl`, and so is the text.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from moekit.comparison.results_schema import Run
from moekit.comparison.run.run_task import FAILURES, Tell, failure_text
from moekit.comparison.run.training_task import TrainingTask
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.model_costs import ContestantConfig
from moekit.comparison.spec.upcycling_phases import UpcyclingPhases
from moekit.convert.dense_to_moe.upcycling import plan_upcycling
from moekit.models import LanguageModel, load
from moekit.training import StepLog, StepRecord, StepReport, Trainer, TrainingHistory
from moekit.training.loop import Point

Message = TypeVar("Message", Point, StepRecord, StepReport)


class UpcyclingTask(TrainingTask):
    """One upcycled contestant with one seed. `model` is the dense one until it is converted."""

    def __init__(self, folder: ComparisonFolder, contestant: str, seed: int, tell: Tell) -> None:
        super().__init__(folder, contestant, seed, tell)
        self.place = folder.run(contestant, seed)

    @property
    def phases(self) -> UpcyclingPhases:
        """The phases of the run, as the plan has them."""
        phases = self.plan.contestant(self.contestant).upcycled
        assert phases is not None
        return phases

    @property
    def first_config(self) -> ContestantConfig:
        """The configuration of the dense model."""
        return self.phases.dense

    def run(self) -> Run:
        """Train dense, convert, train on and measure; what is done already is not done again."""
        first, second = self.phases.trainings(self.training)
        dense = self.trainer(self.model, first, self.place / "dense.safetensors", StepLog(self.place, **self.logging))
        try:
            if dense.history.step < first.steps:  # the log may go on beyond this phase already
                dense.run(self.tell)
        except FAILURES as error:
            return self.record(dense.history, failure=failure_text(error))
        before = dense.history
        self.model = self._converted(dense.averaged, self.place)
        del dense  # its memory is free for what follows
        log = _LaterLog(self.place, before, **self.logging)
        trainer = self.trainer(self.model, second, self.folder.state(self.contestant, self.seed), log, before.step)
        _go_on_averaging(trainer, before.step)
        try:
            trainer.run(lambda report: self.tell(_after(before, report)))
        except FAILURES as error:
            return self.record(joined(before, trainer.history), failure=failure_text(error))
        return self.measured(trainer, joined(before, trainer.history))

    def flops(self, step: int) -> float:
        """Count the FLOPs spent after so many steps of both phases."""
        return self.phases.flops(step, self.training.step_tokens)

    def calibrate(self) -> Calibrated:
        """Time both phases and the conversion; a step is the mean of those that the run will take."""
        dense_seconds = self.step_seconds(self.model)
        begin = time.perf_counter()
        with self.thrown_away() as place:
            self.model = self._converted(self.model, place)
        conversion = time.perf_counter() - begin
        found = super().calibrate()
        after, (dense, upcycled) = self.phases.options.after, self.phases.flops_per_token
        step_seconds = after * dense_seconds + (1 - after) * dense / upcycled * found.step_seconds
        return found.model_copy(
            update={"step_seconds": step_seconds, "fixed_seconds": found.fixed_seconds + conversion}
        )

    def _converted(self, dense: LanguageModel, place: Path) -> LanguageModel:
        """Upcycle `dense` by way of folders in `place`, which are kept where they are whole; gives the model."""
        before, after = place / "dense", place / "upcycled"
        if not after.exists():
            if not before.exists():
                dense.save(before)
            options = self.phases.options
            plan_upcycling(before, options.model_copy(update={"seed": options.seed + self.seed})).run(after)
        model = load(after)
        assert isinstance(model, LanguageModel)
        return model


class _LaterLog(StepLog):
    """The log of a phase that has another before it: its steps and seconds are counted from that one's start."""

    def __init__(self, folder: Path, before: TrainingHistory, *, tensorboard: bool) -> None:
        super().__init__(folder, tensorboard=tensorboard)
        self.before = before

    @contextmanager
    def going_on(self, step: int) -> Iterator[None]:
        """Open the log where `step` steps of this phase are done."""
        with super().going_on(self.before.step + step):
            yield

    def write(self, record: StepRecord) -> None:
        """Write the record of a step."""
        super().write(_after(self.before, record))


def _go_on_averaging(trainer: Trainer, before: int) -> None:
    """Let a trainer that has taken no step average its weights as after `before` steps.

    So the curve has no jump where the function has none, and what the dense model was fades as a run's past does.
    """
    if trainer.history.step == 0:
        trainer.average.n_averaged.fill_(before)


def joined(before: TrainingHistory, after: TrainingHistory) -> TrainingHistory:
    """Join both phases to one history."""
    warnings = {layer: f"after upcycling, {text}" for layer, text in after.collapse.warnings.items()}
    return TrainingHistory(
        step=before.step + after.step,
        seconds=before.seconds + after.seconds,
        spikes=before.spikes + after.spikes,
        points=[*before.points, *(_after(before, point) for point in after.points)],
        collapse=after.collapse.model_copy(update={"warnings": warnings}),
    )


def _after(before: TrainingHistory, message: Message) -> Message:
    """Count what the second phase says from the start of the first."""
    return message.model_copy(update={"step": before.step + message.step, "seconds": before.seconds + message.seconds})
