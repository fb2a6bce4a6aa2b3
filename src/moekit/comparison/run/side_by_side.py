"""Runs side by side, a worker process in each lane: training them, and measuring what they will cost."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice

from moekit.comparison.results_schema import Run
from moekit.comparison.run.lanes import Lane
from moekit.comparison.run.worker_messages import Calibrated, StepTaken
from moekit.comparison.run.worker_process import WorkerDied, Workers
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.run_order import PlannedRun
from moekit.training import StepReport


def train(
    folder: ComparisonFolder,
    runs: Iterable[PlannedRun],
    lanes: Sequence[Lane],
    *,
    on_start: Callable[[PlannedRun], Callable[[StepReport], None]],
    on_end: Callable[[PlannedRun, Run], None],
) -> None:
    """Train runs, or go on with them: each begins, in this order, in the lane that is free first.

    Args:
        folder: of the comparison.
        runs: that have no result yet.
        lanes: in each of which one run is trained at a time.
        on_start: called when a run begins, gives who gets its steps.
        on_end: called when a run has ended; one whose worker died is a failed one.

    Raises:
        Interrupted: where it was asked to stop; all states are saved.
        MoekitError: where no run could go on (a full disk).
    """
    waiting, free = iter(runs), list(reversed(lanes))
    listeners: dict[PlannedRun, Callable[[StepReport], None]] = {}
    with Workers(folder) as workers:

        def fill_lanes() -> None:
            for run in islice(waiting, len(free)):
                listeners[run] = on_start(run)
                workers.start(run, free.pop())

        fill_lanes()
        while workers.going_on:
            said = workers.next()
            run = said.worker.run
            if isinstance(said.message, StepTaken):
                listeners[run](said.message.report)
            elif said.message is None:
                try:
                    said.worker.end()
                    found = Run.model_validate_json(folder.result(*run).read_text(encoding="utf-8"))
                except WorkerDied as death:
                    found = Run(seed=run.seed, status="failed", failure=str(death))
                on_end(run, found)
                free.append(said.worker.lane)
                fill_lanes()


def calibrate(
    folder: ComparisonFolder, contestants: Sequence[str], seed: int, lanes: Sequence[Lane]
) -> dict[str, Calibrated | WorkerDied]:
    """Measure what contestants cost in these lanes, in the company that runs have there.

    As many at a time as there are lanes; each goes on computing until all of them are measured, and lanes for which no
    contestant is left measure one again.

    Returns:
        What each costs, or why it cannot even be tried.
    """
    found: dict[str, Calibrated | WorkerDied] = {}
    shutil.rmtree(folder.scratch, ignore_errors=True)  # of one that was killed
    folder.scratch.mkdir(parents=True)
    try:
        for begin in range(0, len(contestants), len(lanes)):
            found |= _calibrate_round(folder, contestants[begin : begin + len(lanes)], seed, lanes)
    finally:
        shutil.rmtree(folder.scratch, ignore_errors=True)
    return found


def _calibrate_round(
    folder: ComparisonFolder, names: Sequence[str], seed: int, lanes: Sequence[Lane]
) -> dict[str, Calibrated | WorkerDied]:
    found: dict[str, Calibrated | WorkerDied] = {}
    with Workers(folder) as workers:
        for lane, name in zip(lanes, cycle(names), strict=False):
            workers.start(PlannedRun(name, seed), lane, "--calibrate")
        while workers.going_on and not all(name in found for name in names):
            said = workers.next()
            name = said.worker.run.contestant
            if isinstance(said.message, Calibrated):
                found.setdefault(name, said.message)
            elif said.message is None:
                try:
                    said.worker.end()
                    found.setdefault(name, WorkerDied("it ended without a measurement"))
                except WorkerDied as death:
                    found.setdefault(name, death)
        workers.kill()
    return found
