"""Starting worker processes and reading what they say."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from moekit.comparison.run.lanes import Lane
from moekit.comparison.run.worker_messages import Stopped, WorkerMessage, read_message
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.run_order import PlannedRun
from moekit.core.errors import MoekitError
from moekit.training import Interrupted


class WorkerDied(MoekitError):
    """A worker ended without a result; the message says how, for the report."""


class Worker:
    """A worker process in its lane. What it says comes to `said` as lines, and None when it says nothing more."""

    def __init__(
        self,
        folder: ComparisonFolder,
        run: PlannedRun,
        lane: Lane,
        said: "queue.SimpleQueue[tuple[Worker, str | None]]",
        extra: Sequence[str],
    ) -> None:
        self.run, self.lane = run, lane
        self._log = folder.log(run.contestant, run.seed)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._stopped: Stopped | None = None
        command = [sys.executable, "-m", "moekit.comparison.run.worker", str(folder.root), run.contestant]
        with self._log.open("ab") as log, lane.inherited():
            # In a session of its own, the worker does not get the terminal's Ctrl-C: only we ask it to stop, and once.
            # Should we be killed, it ends itself.
            self.process = subprocess.Popen(
                [*command, str(run.seed), *extra],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(lane),
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=[said], daemon=True)
        self._reader.start()

    def _read(self, said: "queue.SimpleQueue[tuple[Worker, str | None]]") -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                # A worker that is killed may leave a line without its end.
                if not line.endswith("\n"):
                    break
                said.put((self, line))
        said.put((self, None))

    def hear(self, line: str) -> WorkerMessage | None:
        """Read what it said; None where it was a `Stopped`, which `end` tells of."""
        message = read_message(line)
        if isinstance(message, Stopped):
            self._stopped = message
            return None
        return message

    def end(self) -> None:
        """Wait for its end. Raises what a `Stopped` says, or WorkerDied where it ended with a status."""
        status = self.process.wait()
        self._reader.join()
        if self._stopped is not None:
            kind = Interrupted if self._stopped.exit_status == Interrupted.exit_status else MoekitError
            raise kind(self._stopped.error)
        if status != 0:
            raise WorkerDied(_death_text(status, self._log))


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a worker said, or, where that is None, that it has ended."""

    worker: Worker
    message: WorkerMessage | None


class Workers:
    """The worker processes that are going on, none of which outlives the `with` block.

    Where the block is left by a stop (Ctrl-C, or what a worker tells that concerns all runs), they save their state
    first; a stop by Ctrl-C is raised as Interrupted. Where it is left by any other error, they are killed.
    """

    def __init__(self, folder: ComparisonFolder) -> None:
        self.folder = folder
        self.going_on: list[Worker] = []
        self._said: queue.SimpleQueue[tuple[Worker, str | None]] = queue.SimpleQueue()

    def start(self, run: PlannedRun, lane: Lane, *extra: str) -> Worker:
        """Start one; `extra` are arguments of `moekit.comparison.run.worker`."""
        worker = Worker(self.folder, run, lane, self._said, extra)
        self.going_on.append(worker)
        return worker

    def next(self) -> Said:
        """Wait for what any of them says next."""
        while True:
            worker, line = self._said.get()
            if line is None:
                if worker in self.going_on:
                    self.going_on.remove(worker)
                    return Said(worker=worker, message=None)
            elif (message := worker.hear(line)) is not None:
                return Said(worker=worker, message=message)

    def kill(self) -> None:
        """End all of them at once, and say nothing more of them."""
        for worker in self.going_on:
            worker.process.kill()
        for worker in self.going_on:
            worker.process.wait()
        self.going_on.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, KeyboardInterrupt | MoekitError):
                for worker in self.going_on:
                    worker.process.send_signal(signal.SIGTERM)  # it saves its state and ends
                for worker in self.going_on:
                    worker.process.wait()
        finally:
            self.kill()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("Stopped.") from None


def _environment(lane: Lane) -> dict[str, str]:
    """Say how a worker treats threads and memory, unless the user says otherwise; the lane's threads are the plan's.

    Threads that wait for each other sleep: spinning gains nothing, and costs most of the speed as soon as anything
    else runs on the machine. And glibc keeps freed memory, of which the next step needs as much again: handing it
    back and forth costs a tenth to a quarter of a step.
    """
    keep = str(1 << 32)
    usual = {"OMP_WAIT_POLICY": "passive", "MALLOC_TRIM_THRESHOLD_": keep, "MALLOC_MMAP_THRESHOLD_": keep}
    threads = {} if lane.threads is None else {"OMP_NUM_THREADS": str(lane.threads)}
    return usual | os.environ | threads


def _death_text(status: int, log: Path) -> str:
    if status == -signal.SIGKILL:
        return "it was killed, most likely because the machine ran out of memory"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    how = f"it ended by signal {-status}" if status < 0 else f"it ended with status {status}"
    return f"{how}: {lines[-1]}" if lines else how
