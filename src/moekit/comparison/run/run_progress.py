"""How far one training run is, as the display of progress and the log of messages get it."""

import logging

from moekit.core.formatting import count_text
from moekit.core.progress import Task
from moekit.training import StepReport

_logger = logging.getLogger(__name__)


class RunProgress:
    """Turn the steps of one run into progress with figures; what went wrong with its routing becomes messages.

    Args:
        task: gets the progress.
        name: of the run, for messages.
        step_tokens: training tokens of one step.
    """

    def __init__(self, task: Task, name: str, step_tokens: int) -> None:
        self._task, self._name, self._step_tokens = task, name, step_tokens
        self._first: StepReport | None = None
        self._measured = ""

    def step(self, report: StepReport) -> None:
        """Tell of a step that was taken."""
        for warning in report.warnings:
            _logger.warning("  %s: %s", self._name, warning)
        if report.bits_per_byte is not None:
            self._measured = f" · held out {report.bits_per_byte:.3f}"
        note = f"loss {report.loss:.3f}{self._measured}"
        if report.load_max_over_mean is not None:
            note += f" · load {report.load_max_over_mean:.1f}x, {report.dead_experts} dead"
        # A run that goes on has steps behind it that were not taken now.
        self._first = self._first or report
        if report.step > self._first.step and report.seconds > self._first.seconds:
            steps_a_second = (report.step - self._first.step) / (report.seconds - self._first.seconds)
            note += f" · {count_text(self._step_tokens * steps_a_second)} tokens/s"
        self._task.set(report.step, note=note)
