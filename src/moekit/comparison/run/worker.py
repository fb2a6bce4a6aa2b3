"""One training run in its own process: `python -m moekit.comparison.run.worker FOLDER CONTESTANT SEED [--calibrate]`.

A process each, so that its peak of memory is its own, and running out of memory ends one run and not the comparison.
Everything it needs lies in the comparison's folder, everything it finds out goes there. Its standard output holds
`moekit.comparison.run.worker_messages` and nothing else; what else is printed goes to standard error, the run's log.
A training that fails is a result too; what concerns all runs (a full disk, a stop) is told by a `Stopped`.

A worker whose parent was killed ends at once, so that nobody writes to the folder when it is resumed.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from moekit.comparison.run.counting_task import CountingTask
from moekit.comparison.run.run_task import RunTask, Tell
from moekit.comparison.run.training_task import TrainingTask
from moekit.comparison.run.upcycling_task import UpcyclingTask
from moekit.comparison.run.worker_messages import Calibrated, StepTaken, Stopped, write_message
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.config import NGramConfig
from moekit.core import files
from moekit.core.errors import MoekitError


def new_task(folder: ComparisonFolder, contestant: str, seed: int, tell: Tell) -> RunTask:
    """Make the task of that contestant, by the kind of its model and of its run; `tell` gets its steps."""
    planned = folder.read_plan().contestant(contestant)
    if isinstance(planned.config, NGramConfig):
        return CountingTask(folder, contestant, seed, tell)
    return (UpcyclingTask if planned.upcycled else TrainingTask)(folder, contestant, seed, tell)


def end_with_parent(poll_seconds: float = 0.1) -> None:
    """Let this process be killed as soon as the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str], output: TextIO) -> int:
    """Do what the command line says, write messages to `output`, and give the exit status."""

    def write(message: StepTaken | Calibrated | Stopped) -> None:
        output.write(write_message(message) + "\n")
        output.flush()

    root, contestant, seed, *rest = arguments
    folder = ComparisonFolder(Path(root))
    try:
        task = new_task(folder, contestant, int(seed), lambda report: write(StepTaken(report=report)))
        if rest == ["--calibrate"]:
            write(task.calibrate())
            task.keep_company()
        else:
            result = task.run()
            files.write_text(folder.result(contestant, int(seed)), result.model_dump_json(indent=1))
    except MoekitError as error:
        write(Stopped(error=str(error), exit_status=error.exit_status))
        return error.exit_status
    return 0


if __name__ == "__main__":
    # Messages keep standard output to themselves: what else writes there, libraries in C included, gets standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as messages:
        os.dup2(2, 1)
        end_with_parent()
        sys.exit(main(sys.argv[1:], messages))
