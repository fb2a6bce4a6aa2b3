"""What the search for learning rates found, as it stands in the results."""

from moekit.comparison.results_schema import Run, Trial
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import ComparisonPlan
from moekit.comparison.spec.tuning_plan import FACTORS, trial_name


def read_trials(plan: ComparisonPlan, folder: ComparisonFolder) -> list[Trial]:
    """Read the trials of a comparison's contestants; none where their rates were not searched."""
    searched = ComparisonFolder(folder.tuning)
    if not searched.plan.exists():
        return []
    (seed,) = searched.read_plan().seeds
    trials = []
    for entry in plan.contestants:
        for factor in FACTORS:
            result = searched.result(trial_name(entry.name, factor), seed)
            if result.exists():
                run = Run.model_validate_json(result.read_text(encoding="utf-8"))
                trials.append(
                    Trial(
                        contestant=entry.name,
                        rate_factor=factor,
                        tokens=run.tokens,
                        seconds=run.seconds,
                        bits_per_byte=run.bits_per_byte,
                    )
                )
    return trials
