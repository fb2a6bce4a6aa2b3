"""What every verb shows while it works: a bar a task, on standard error, of which nothing stays.

rich is imported when the first bar is drawn, and where standard error is no terminal nothing is.
"""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moekit.core.formatting import bytes_text, duration_text
from moekit.core.progress import Advanced, Finished, ProgressEvent, Started, Unit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_BAR_WIDTH = 24


@dataclass
class _Bar:
    """A task that goes on. since, at: seconds and what was done when it was first told of; what resumes starts late."""

    id: "TaskID"
    unit: Unit
    since: float | None = None
    at: int = 0

    def figures(self, event: Advanced, now: float) -> str:
        """Say how much is done, how fast, and how long the rest takes, in seconds of `now`."""
        if self.since is None:
            self.since, self.at = now, event.done
        parts = [_count(event.done, event.total, self.unit)]
        if event.done > self.at and now > self.since:
            rate = (event.done - self.at) / (now - self.since)
            parts.append(f"{bytes_text(rate)}/s" if self.unit == "bytes" else "")
            if event.total is not None and event.total > event.done:
                parts.append(f"{duration_text((event.total - event.done) / rate)} left")
        # The note comes last: where the terminal is narrow, its end is cut off.
        return " · ".join(filter(None, [*parts, event.note]))


class ProgressDisplay:
    """Show the tasks that are told of, as a `moekit.core.progress.Progress`.

    Bars are drawn from the first task's start to the last one's end. What is written to standard error meanwhile
    appears above them.

    Args:
        console: where to draw; by default standard error, where that is a terminal.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console
        self._drawn: Progress | None = None
        self._bars: dict[str, _Bar] = {}

    def __call__(self, event: ProgressEvent) -> None:
        """Draw what the event tells."""
        if self._console is None and not sys.stderr.isatty():
            return
        match event:
            case Started():
                self._start(event)
            case Advanced():
                bar = self._bars[event.task]
                drawn = self._progress()
                figures = self._fitting(bar.figures(event, time.monotonic()), drawn.console.width)
                drawn.update(bar.id, completed=event.done, total=event.total, figures=figures)
            case Finished():
                self._finish(event)

    def _start(self, event: Started) -> None:
        figures = _count(0, event.total, event.unit)
        id_ = self._progress().add_task(event.task, total=event.total, figures=figures)
        self._bars[event.task] = _Bar(id_, event.unit)

    def _finish(self, event: Finished) -> None:
        drawn = self._progress()
        drawn.remove_task(self._bars.pop(event.task).id)
        if not self._bars:
            drawn.stop()
            self._drawn = None

    def _fitting(self, figures: str, width: int) -> str:
        """Cut off what does not fit beside the longest name and the bars, on a terminal of `width` columns."""
        room = max(1, width - max(map(len, self._bars)) - _BAR_WIDTH - 2)
        return figures if len(figures) <= room else f"{figures[: room - 1]}…"

    def _progress(self) -> "Progress":
        """Give what is drawn, started with the first task."""
        if self._drawn is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._drawn = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=_BAR_WIDTH),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console or Console(stderr=True, highlight=False),
                transient=True,
            )
            self._drawn.start()
        return self._drawn


def _count(done: int, total: int | None, unit: Unit) -> str:
    """Say `1.20 GB of 3.40 GB`, or `12/300`; what is done alone while nobody knows the total."""
    if unit == "bytes":
        return bytes_text(done) if total is None else f"{bytes_text(done)} of {bytes_text(total)}"
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"
