"""How far long work is, told to whoever shows it: one callback, `Progress`, that gets events.

What works takes `progress: Progress = no_progress` and tells of its tasks with `Task`; the command line shows them
as bars, and a Python user may pass any function that takes a `ProgressEvent`. Messages in words are no progress: they
go to the standard `logging`, under the name of the module that has something to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Unit = Literal["bytes", "documents", "questions", "runs", "steps", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A task starts. Its name is unique among those that are going on; total is None while nobody knows it."""

    task: str
    total: int | None
    unit: Unit


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """So much of a task is done, of `total`. The note holds figures that change with it, such as the loss."""

    task: str
    done: int
    total: int | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A task ended, whether all of it was done or not."""

    task: str


ProgressEvent = Started | Advanced | Finished
Progress = Callable[[ProgressEvent], None]


def no_progress(event: ProgressEvent) -> None:
    """Show nothing: what work tells where nobody asked."""


class Task:
    """Tell `progress` of one task, from the start of a `with` block to its end.

    Args:
        progress: gets the events.
        name: of the task, as a person reads it.
        total: how much there is to do, if it is known already.
        unit: what is counted.
    """

    def __init__(self, progress: Progress, name: str, *, total: int | None = None, unit: Unit) -> None:
        self._progress, self._name, self._unit = progress, name, unit
        self._total, self._done, self._finished = total, 0, False

    def __enter__(self) -> Self:
        self._progress(Started(task=self._name, total=self._total, unit=self._unit))
        return self

    def set(self, done: int, total: int | None = None, note: str = "") -> None:
        """Tell that `done` is done in all, of `total`, which replaces the total that was known before."""
        self._done = done
        self._total = self._total if total is None else total
        if not self._finished:
            self._progress(Advanced(task=self._name, done=done, total=self._total, note=note))

    def advance(self, by: int, note: str = "") -> None:
        """Tell that `by` more is done."""
        self.set(self._done + by, note=note)

    def finish(self) -> None:
        """Tell that the task ended, before the end of the block; what is told after that is nothing."""
        if not self._finished:
            self._finished = True
            self._progress(Finished(task=self._name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
