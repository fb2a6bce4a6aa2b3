"""One training run in a process of its own: `python -m moekit.compare.run.worker FOLDER CONTESTANT SEED [--calibrate]`.

A process each, so that its peak of memory is its own, and running out of memory ends one run and not the comparison.
Everything it needs lies in the comparison's folder, everything it finds out goes there; progress goes to standard
output, one JSON object a line. A training that fails is a result too; what concerns all runs (a full disk, a stop) is
told as a `Stopped` on the last line.
"""

import sys
from pathlib import Path

from moekit.compare.run.counting_task import CountingTask
from moekit.compare.run.run_task import Stopped, Task, tell
from moekit.compare.run.training_task import TrainingTask
from moekit.compare.run.upcycling_task import UpcyclingTask
from moekit.compare.spec.comparison_plan import ComparisonFolder
from moekit.config import NGramConfig
from moekit.core import files
from moekit.core.errors import MoekitError


def new_task(folder: ComparisonFolder, contestant: str, seed: int) -> Task:
    """The task of that contestant, by the kind of its model and of its run."""
    entry = folder.read_plan().entry(contestant)
    if isinstance(entry.config, NGramConfig):
        return CountingTask(folder, contestant, seed)
    return (UpcyclingTask if entry.upcycled else TrainingTask)(folder, contestant, seed)


def main(arguments: list[str]) -> int:
    """Run the worker; gives the exit status."""
    root, contestant, seed, *rest = arguments
    folder = ComparisonFolder(Path(root))
    try:
        task = new_task(folder, contestant, int(seed))
        if rest == ["--calibrate"]:
            tell(task.calibrate())
        else:
            result = task.run()
            files.write_text(folder.result(contestant, int(seed)), result.model_dump_json(indent=1))
    except MoekitError as error:
        tell(Stopped(error=str(error), exit_status=error.exit_status))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
