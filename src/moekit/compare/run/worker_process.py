"""Starting worker processes and reading what they say."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from moekit.compare.results_schema import Run
from moekit.compare.run.run_task import Calibration, Stopped
from moekit.compare.spec.comparison_plan import ComparisonFolder
from moekit.core.errors import MoekitError
from moekit.training import Interrupted, StepReport


class WorkerDied(MoekitError):
    """A worker ended without a result; the message says how, for the report."""


def calibrate(folder: ComparisonFolder, contestant: str, seed: int) -> Calibration:
    """What the contestant costs on this machine; raises WorkerDied where it cannot even be tried."""
    last = _run(folder, contestant, seed, ["--calibrate"], lambda report: None)
    return Calibration.model_validate_json(last)


def train(folder: ComparisonFolder, contestant: str, seed: int, on_step: Callable[[StepReport], None]) -> Run:
    """Train one contestant with one seed, or go on with it; a worker that died gives a failed Run.

    Raises Interrupted where it was asked to stop, MoekitError where no run could go on (a full disk).
    """
    try:
        _run(folder, contestant, seed, [], on_step)
    except WorkerDied as death:
        return Run(seed=seed, status="failed", failure=str(death))
    return Run.model_validate_json(folder.result(contestant, seed).read_text(encoding="utf-8"))


def _run(
    folder: ComparisonFolder, contestant: str, seed: int, extra: list[str], on_step: Callable[[StepReport], None]
) -> str:
    """Run a worker to its end; gives its last line."""
    log = folder.log(contestant, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "moekit.compare.run.worker", str(folder.root), contestant, str(seed), *extra]
    last = ""
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
                last = line
                if line.startswith('{"step"'):
                    on_step(StepReport.model_validate_json(line))
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # it saves its state and ends
            process.wait()
            raise Interrupted("Stopped.") from None
        except BaseException:
            process.kill()
            raise
        status = process.wait()
    if status == 0:
        return last
    if last.startswith('{"error"'):
        stopped = Stopped.model_validate_json(last)
        raise (Interrupted if stopped.exit_status == Interrupted.exit_status else MoekitError)(stopped.error)
    raise WorkerDied(_death_text(status, log))


def _environment() -> dict[str, str]:
    """How a worker treats threads and memory, unless the user says otherwise.

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
