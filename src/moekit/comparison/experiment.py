"""The main job: train all contestants on the same data at the same compute, measure them, write the report."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import ValidationError

from moekit.comparison.analysis.decision import decide
from moekit.comparison.analysis.power import prior_text
from moekit.comparison.report import write_markdown, write_report
from moekit.comparison.results_schema import Results, Run, read_results, write_results
from moekit.comparison.run import side_by_side
from moekit.comparison.run.collected_results import collect_results
from moekit.comparison.run.lanes import has_room_for, lanes_here
from moekit.comparison.run.run_progress import RunProgress
from moekit.comparison.run.serving.serving_process import serve, serving_seconds
from moekit.comparison.run.step_budget import MINIMUM_STEPS, unmeasured_lanes, within_budget
from moekit.comparison.run.tuning_trials import read_trials
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import ComparisonPlan, new_plan, planned_runs
from moekit.comparison.spec.comparison_request import (
    DEFAULT_BUDGET_SECONDS,
    ComparisonRequest,
    check_tensorboard,
)
from moekit.comparison.spec.contestant_selection import choose_contestants, size_named
from moekit.comparison.spec.contestants import Contestant
from moekit.comparison.spec.run_order import PlannedRun
from moekit.comparison.spec.tuning_plan import FACTORS, learns, trials_plan, with_rates
from moekit.core.errors import UsageError
from moekit.core.formatting import count_text, duration_text
from moekit.core.progress import Progress, Task, no_progress
from moekit.data import Corpus, large_enough, load_corpus
from moekit.training import StepReport

_logger = logging.getLogger(__name__)


def compare(
    out: str | Path,
    *,
    data: Sequence[str | Path] = (),
    text_column: str = "text",
    domain_column: str | None = None,
    contestants: str | Path | Sequence[str | Contestant] | None = None,
    baseline: str | None = None,
    size: str = "xs",
    seeds: int = 3,
    budget_seconds: float | None = None,
    tokens: int | None = None,
    tensorboard: bool = False,
    tune: bool = False,
    command: str = "",
    progress: Progress = no_progress,
) -> Results:
    """Train contestants on the same text at the same compute, measure them, and write results and a report.

    What `moekit compare` does. Runs are processes of their own; a comparison that was stopped or killed goes on with
    `resume`. Messages go to the logger `moekit.comparison`.

    Args:
        out: a folder for everything, results.json, report.html and report.md among it; it must hold no comparison yet.
        data: files, folders or hub ids (owner/name) of text; none for the embedded corpus.
        text_column: where rows (jsonl, csv, parquet, hub) hold their text.
        domain_column: where rows name their domain.
        contestants: a list of names of built-in contestants and of contestants of your own, or a YAML file of such;
            None for the default set, two of which take part only where the budget allows.
        baseline: the name of the contestant that the others are held against; None for the file's, or the first one.
        size: of the models: xs, s, m or l.
        seeds: runs of each contestant.
        budget_seconds: for the whole comparison; None for eleven minutes, or as long as it takes where that is too
            little.
        tokens: training tokens of each run, instead of a budget.
        tensorboard: whether each run also writes events for TensorBoard.
        tune: whether each contestant's learning rate is searched first, as many trials for each; under a budget, the
            trials take the share of it that they are of all runs.
        command: what repeats the comparison, for the report.
        progress: gets how far the runs are.

    Returns:
        What results.json holds.

    Raises:
        UsageError: before any training, where an argument is wrong, `out` holds a comparison, the text is too short
            or the budget too small.
        Interrupted: where it was stopped; all state is saved.
        MoekitError: where no run could go on, as with a full disk.

    Examples:
        >>> import moekit
        >>> results = moekit.compare("runs/mine", data=["essays"], contestants=["dense", "moe"], seeds=1, tokens=20_000)
        >>> {one.name: one.bits_per_byte for one in results.contestants}
    """
    if budget_seconds is not None and tokens is not None:
        raise UsageError("A budget and a number of tokens exclude each other; give one of them.")
    if tensorboard:
        check_tensorboard()
    shape = size_named(size)
    chosen = choose_contestants(contestants, shape, baseline=baseline)
    request = ComparisonRequest(
        contestants=chosen.required,
        optional=chosen.optional,
        baseline=chosen.baseline,
        size_name=size,
        size=shape,
        seeds=seeds,
        command=command,
        budget_seconds=(budget_seconds or DEFAULT_BUDGET_SECONDS) if tokens is None else None,
        budget_asked=budget_seconds is not None,
        tokens=tokens,
        tensorboard=tensorboard,
        tune=tune,
    )
    folder = ComparisonFolder(Path(out))
    if folder.plan.exists():
        raise UsageError(f"{folder.root} holds a comparison already: resume it, or name another folder.")
    _logger.info("Reading the text")
    corpus = load_corpus(
        tuple(map(str, data)), text_column=text_column, domain_column=domain_column, say=_logger.warning
    )
    return start(request, corpus, folder, progress)


def resume(out: str | Path, *, progress: Progress = no_progress) -> Results:
    """Go on with the comparison in `out` where it was stopped or killed; what is done is not done again.

    Of one that had come to its end, this writes the reports anew, and nothing is measured.

    Args:
        out: the folder that `compare` was given.
        progress: gets how far the runs are.

    Returns:
        What results.json holds, as if the comparison had never been stopped.

    Raises:
        Interrupted: where it was stopped again; all state is saved.
        MoekitError: where there is no comparison, or it cannot go on.

    Examples:
        >>> from moekit.comparison import resume
        >>> results = resume("runs/mine")
    """
    began = time.monotonic()
    folder = ComparisonFolder(Path(out))
    plan = folder.read_plan()
    return _ended(plan, folder) or _finish(_ready(plan, folder, progress, began), folder, progress, began)


def _ended(plan: ComparisonPlan, folder: ComparisonFolder) -> Results | None:
    """Report a comparison that had come to its end; gives None where a run, or the whole, has no readable results."""
    if not all(folder.result(one.name, seed).exists() for one in plan.contestants for seed in plan.seeds):
        return None
    try:
        results = read_results(folder.results)
    except (FileNotFoundError, ValidationError):
        return None
    _write_reports(results, folder)
    return results


def _write_reports(results: Results, folder: ComparisonFolder) -> None:
    write_report(results, folder.report)
    write_markdown(results, folder.short_report)


def start(
    request: ComparisonRequest, corpus: Corpus, folder: ComparisonFolder, progress: Progress = no_progress
) -> Results:
    """Plan, train, measure and report a new comparison in an empty `folder`.

    Raises UsageError before any training where the corpus or the budget is too small.
    """
    began = time.monotonic()
    return _finish(prepare(request, corpus, folder, progress), folder, progress, began)


def prepare(
    request: ComparisonRequest, corpus: Corpus, folder: ComparisonFolder, progress: Progress = no_progress
) -> ComparisonPlan:
    """Plan a new comparison in an empty `folder`, for `resume` to train; under a budget speed is measured.

    Raises UsageError where the corpus or the budget is too small.
    """
    began = time.monotonic()
    plan = new_plan(request)
    if plan.budget_seconds is None:
        plan = plan.model_copy(update={"lanes": unmeasured_lanes(plan)})
    training = plan.training
    corpus = large_enough(corpus, sequences=training.sequences, context=training.context, say=_logger.warning)
    corpus.save(folder.corpus)
    plan = plan.with_final_text(len(corpus.domains))
    folder.write_plan(plan)
    return _ready(plan, folder, progress, began)


def _ready(plan: ComparisonPlan, folder: ComparisonFolder, progress: Progress, began: float) -> ComparisonPlan:
    """Give the plan with all that is found out before its runs, once, and kept in the folder: rates, then steps.

    Raises UsageError where the budget is too small, or the plan wants TensorBoard and it is missing.
    """
    if plan.tune:
        plan = _tuned(plan, folder, progress)
        began = time.monotonic()
    return _settled(plan, folder, began)


def _tuned(plan: ComparisonPlan, folder: ComparisonFolder, progress: Progress) -> ComparisonPlan:
    """Give the plan with the learning rates of the best trials."""
    began = time.monotonic()
    trials = ComparisonFolder(folder.tuning)
    if not trials.plan.exists():
        _logger.info("Searching the learning rate of each contestant: %d trials for each", len(FACTORS))
        Corpus.open(folder.corpus).save(trials.corpus)
        trials.write_plan(trials_plan(plan))
    try:
        found = _trained(_settled(trials.read_plan(), trials, began), trials, progress)
    except UsageError:
        folder.plan.unlink()  # the budget was too small: there is nothing to resume
        raise
    plan = with_rates(plan, {trial.contestant: run.bits_per_byte for trial, run in found.items()})
    for entry in filter(learns, plan.contestants):
        _logger.info("  %s: %g times the rule's learning rate", entry.name, entry.rate_factor)
    plan = plan.model_copy(update={"tune": False, "tuning_seconds": time.monotonic() - began})
    folder.write_plan(plan)
    return plan


def _settled(plan: ComparisonPlan, folder: ComparisonFolder, began: float) -> ComparisonPlan:
    """Give the plan with its number of steps, which under a budget is found out here once and kept in the folder.

    Raises UsageError where the budget is too small, or the plan wants TensorBoard and it is missing.
    """
    if plan.tensorboard:
        check_tensorboard()
    if plan.budget_seconds is None or plan.training.steps >= MINIMUM_STEPS:
        return plan
    try:
        kept = serving_seconds(plan.budget_seconds) + plan.tuning_seconds
        plan = within_budget(plan, folder, plan.budget_seconds - kept - (time.monotonic() - began))
        plan = plan.with_final_text(len(Corpus.open(folder.corpus).domains))
    except UsageError:
        folder.plan.unlink()  # nothing was trained: there is nothing to resume
        raise
    folder.write_plan(plan)
    return plan


def _finish(plan: ComparisonPlan, folder: ComparisonFolder, progress: Progress, began: float) -> Results:
    """Do what of the plan is not done yet, then write results and report."""
    corpus = Corpus.open(folder.corpus)
    if told := prior_text(plan.size, plan.training.steps * plan.training.step_tokens, len(plan.seeds), corpus.name):
        _logger.info("%s", told)
    done = _trained(plan, folder, progress)
    runs = {planned.name: [done[PlannedRun(planned.name, seed)] for seed in plan.seeds] for planned in plan.contestants}
    served = serve(folder, _serving_seconds(plan, runs))
    results = collect_results(
        plan, corpus, runs, served, wall_seconds=time.monotonic() - began, trials=read_trials(plan, folder)
    )
    results = results.model_copy(update={"verdict": decide(results)})
    write_results(results, folder.results)
    _write_reports(results, folder)
    return results


def _serving_seconds(plan: ComparisonPlan, runs: dict[str, list[Run]]) -> float:
    """Give what measuring models as they are served may take: by the budget, else by what training took."""
    trained = sum(run.seconds or 0.0 for of_contestant in runs.values() for run in of_contestant)
    return serving_seconds(trained if plan.budget_seconds is None else plan.budget_seconds)


def _trained(plan: ComparisonPlan, folder: ComparisonFolder, progress: Progress) -> dict[PlannedRun, Run]:
    """Train, side by side, what has no result yet, and give what came of every run."""
    order, lanes = planned_runs(plan), lanes_here(plan.lanes)
    _logger.info(
        "Training %d contestants with %d seed(s): %d runs of %s tokens (%d steps) in %s, %d at a time",
        len(plan.contestants),
        len(plan.seeds),
        len(order),
        count_text(plan.training.steps * plan.training.step_tokens),
        plan.training.steps,
        plan.training.precision,
        len(lanes),
    )
    if not has_room_for(plan.lanes):
        _logger.warning(
            "It was planned for %d runs at a time with %d thread(s) each, and this machine has fewer cores. Each run "
            "keeps its threads, and so its bits; seconds from before and from now are not comparable.",
            plan.lanes.count,
            plan.lanes.threads,
        )
    done = {run: found for run in order if (found := _read_result(folder, run))}
    for run, found in done.items():
        _tell_end(run, found)
    with Task(progress, "all runs", total=len(order), unit="runs") as all_runs, ExitStack() as tasks:
        all_runs.advance(len(done))
        shown: dict[PlannedRun, Task] = {}

        def on_start(run: PlannedRun) -> Callable[[StepReport], None]:
            task = Task(progress, str(run), total=plan.steps_of(run.contestant), unit="steps")
            shown[run] = tasks.enter_context(task)
            return RunProgress(task, str(run), plan.training.step_tokens).step

        def on_end(run: PlannedRun, found: Run) -> None:
            shown[run].finish()
            _tell_end(run, found)
            done[run] = found
            all_runs.advance(1)

        side_by_side.train(folder, [run for run in order if run not in done], lanes, on_start=on_start, on_end=on_end)
    return done


def _read_result(folder: ComparisonFolder, run: PlannedRun) -> Run | None:
    """Read what a run left that has ended; None where it has not."""
    result = folder.result(*run)
    return Run.model_validate_json(result.read_text(encoding="utf-8")) if result.exists() else None


def _tell_end(run: PlannedRun, found: Run) -> None:
    if found.status == "failed":
        _logger.warning("  %s: failed: %s", run, found.failure)
    elif found.bits_per_byte is not None and found.seconds is not None:
        _logger.info(
            "  %s: %.3f bits per byte after %s of training", run, found.bits_per_byte, duration_text(found.seconds)
        )
