"""The measuring of a comparison's models as they are served: `python -m … FOLDER SECONDS`, in a process of its own.

It runs once all training is done, so that nothing runs beside it, with all cores for one model at a time, as
`moekit generate` would have them. What it finds lies in the comparison's folder, and is not measured again.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from moekit.comparison.results_schema import Run
from moekit.comparison.run.run_task import decode_prompt
from moekit.comparison.run.serving.served_figures import ServedFigures
from moekit.comparison.run.serving.served_sizes import MeasuredSizes, measure_sizes, trained_loads, usual_aim
from moekit.comparison.run.serving.trained_models import measure_trained
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import ComparisonPlan
from moekit.config import ModelConfig
from moekit.core import files
from moekit.data import Corpus
from moekit.training import Interrupted

_logger = logging.getLogger(__name__)

# Of a comparison's time, and the most of it that measuring may take.
_SHARE, _MOST_SECONDS = 0.07, 45.0
# Of that, what the trained models get.
_TRAINED_SHARE = 0.25


def serving_seconds(comparison_seconds: float) -> float:
    """Give what measuring may take in a comparison of so many seconds."""
    return min(_MOST_SECONDS, _SHARE * comparison_seconds)


def serve(folder: ComparisonFolder, seconds: float) -> ServedFigures:
    """Measure the models that the runs in `folder` have left, or read what was found before.

    Measuring that goes wrong, for want of memory say, leaves a message and no figures: what was trained counts all the
    same. Raises Interrupted where it was stopped.
    """
    if not folder.served.exists():
        _logger.info("Decoding with each model as it is served")
        command = [sys.executable, "-m", __name__, str(folder.root), str(seconds)]
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        except KeyboardInterrupt:
            raise Interrupted("Stopped.") from None
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"status {done.returncode}"
            _logger.warning("How fast the models decode was not measured: %s", reason)
            return ServedFigures()
    return ServedFigures.model_validate_json(folder.served.read_text(encoding="utf-8"))


def main(root: str, seconds: float) -> None:
    """Measure, and write what was found."""
    folder = ComparisonFolder(Path(root))
    plan = folder.read_plan()
    context = plan.training.context
    saved = {
        (planned.name, seed): folder.model(planned.name, seed)
        for planned in plan.contestants
        for seed in plan.seeds
        if folder.model(planned.name, seed).exists()
    }
    prompt = decode_prompt(Corpus.open(folder.corpus), context).tolist()
    of_trained = _TRAINED_SHARE * seconds
    trained = measure_trained(saved, prompt, tokens=context - len(prompt), seconds=of_trained)
    figures = ServedFigures.of_runs(trained).model_copy(
        update=vars(_measured_sizes(plan, folder, seconds - of_trained))
    )
    files.write_text(folder.served, figures.model_dump_json(indent=1))


def _measured_sizes(plan: ComparisonPlan, folder: ComparisonFolder, seconds: float) -> MeasuredSizes:
    """Measure the contestants' plans at the size that no cache holds, with the loads that the runs have found."""
    configs, loads, left_out = {}, {}, {}
    for planned in plan.contestants:
        if isinstance(planned.config, ModelConfig):
            configs[planned.name] = planned.config
            loads[planned.name] = trained_loads(_results(folder, planned.name, plan.seeds))
        else:
            left_out[planned.name] = "it is no decoder, and its plan is not one that could grow as the others do"
    found = measure_sizes(configs, plan.baseline, loads, usual_aim(), seconds)
    return MeasuredSizes(sizes=found.sizes, left_out=found.left_out | left_out)


def _results(folder: ComparisonFolder, contestant: str, seeds: Sequence[int]) -> list[Run]:
    results = [folder.result(contestant, seed) for seed in seeds]
    return [Run.model_validate_json(one.read_text(encoding="utf-8")) for one in results if one.exists()]


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
