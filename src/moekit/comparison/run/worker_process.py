"""Starting worker processes and reading what they say."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from moekit.comparison.results_schema import Run
from moekit.comparison.run.worker_messages import Calibrated, StepTaken, Stopped, WorkerMessage, read_message
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.core.errors import MoekitError
from moekit.training import Interrupted, StepReport


class WorkerDied(MoekitError):
    """A worker ended without a result; the message says how, for the report."""


def calibrate(folder: ComparisonFolder, contestant: str, seed: int) -> Calibrated:
    """Measure what the contestant costs on this machine; raises WorkerDied where it cannot even be tried."""
    told: list[WorkerMessage] = []
    _work(folder, contestant, seed, ["--calibrate"], told.append)
    if told and isinstance(told[-1], Calibrated):
        return told[-1]
    raise WorkerDied("it ended without a measurement")


def train(folder: ComparisonFolder, contestant: str, seed: int, on_step: Callable[[StepReport], None]) -> Run:
    """Train one contestant with one seed, or go on with it; a worker that died gives a failed Run.

    Raises Interrupted where it was asked to stop, MoekitError where no run could go on (a full disk).
    """

    def listen(message: WorkerMessage) -> None:
        if isinstance(message, StepTaken):
            on_step(message.report)

    try:
        _work(folder, contestant, seed, [], listen)
    except WorkerDied as death:
        return Run(seed=seed, status="failed", failure=str(death))
    return Run.model_validate_json(folder.result(contestant, seed).read_text(encoding="utf-8"))


def _work(
    folder: ComparisonFolder, contestant: str, seed: int, extra: list[str], on_message: Callable[[WorkerMessage], None]
) -> None:
    """Run a worker to its end and hand on what it says; raises what a `Stopped` says, or WorkerDied."""
    log = folder.log(contestant, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "moekit.comparison.run.worker", str(folder.root), contestant, str(seed), *extra]
    stopped: Stopped | None = None
    with (
        log.open("ab") as log_file,
        # In a session of its own, the worker does not get the terminal's Ctrl-C: only we ask it to stop, and once.
        # Should we be killed, its next report meets a closed pipe and ends it.
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            env=_environment(),
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                # A worker that is killed may leave a line without its end.
                if not line.endswith("\n"):
                    break
                message = read_message(line)
                if isinstance(message, Stopped):
                    stopped = message
                else:
                    on_message(message)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # it saves its state and ends
            process.wait()
            raise Interrupted("Stopped.") from None
        except BaseException:
            process.kill()
            raise
        status = process.wait()
    if stopped is not None:
        raise (Interrupted if stopped.exit_status == Interrupted.exit_status else MoekitError)(stopped.error)
    if status != 0:
        raise WorkerDied(_death_text(status, log))


def _environment() -> dict[str, str]:
    """Say how a worker treats threads and memory, unless the user says otherwise.

    Threads that wait for each other sleep: spinning gains nothing, and costs most of the speed as soon as anything
    else runs on the machine. And glibc keeps freed memory, of which the next step needs as much again: handing it
    back and forth costs a tenth to a quarter of a step.
    """
    keep = str(1 << 32)
    return {
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_TRIM_THRESHOLD_": keep,
        "MALLOC_MMAP_THRESHOLD_": keep,
    } | os.environ


def _death_text(status: int, log: Path) -> str:
    if status == -signal.SIGKILL:
        return "it was killed, most likely because the machine ran out of memory"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    how = f"it ended by signal {-status}" if status < 0 else f"it ended with status {status}"
    return f"{how}: {lines[-1]}" if lines else how
