"""A ladder from the question to the report: rungs, each an ordinary comparison, then laws and leverage."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from moekit.comparison import experiment
from moekit.comparison.ladder import rungs
from moekit.comparison.ladder.ladder_analysis import analyse
from moekit.comparison.ladder.ladder_schema import LadderResults, write_ladder
from moekit.comparison.ladder.rungs import LADDER_SIZES, LadderFolder, LadderPlan, PlannedRung
from moekit.comparison.ladder.target_scale import TargetScale, parse_scale
from moekit.comparison.report.ladder_page import render_ladder
from moekit.comparison.results_schema import Results, read_results
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import ComparisonPlan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import Contestant
from moekit.core import files
from moekit.core.errors import UsageError
from moekit.core.formatting import count_text, duration_text
from moekit.core.progress import Progress, Task, no_progress
from moekit.core.version import __version__
from moekit.data import Corpus, load_corpus

_logger = logging.getLogger(__name__)


def compare_ladder(
    out: str | Path,
    *,
    data: Sequence[str | Path] = (),
    text_column: str = "text",
    domain_column: str | None = None,
    contestants: str | Path | Sequence[str | Contestant] | None = None,
    largest: str = rungs.DEFAULT_LARGEST,
    sizes: Sequence[str] | None = None,
    seeds: int = 3,
    budget_seconds: float | None = None,
    tokens: int | None = None,
    at: str | None = None,
    command: str = "",
    progress: Progress = no_progress,
) -> LadderResults:
    """Train contestants at several sizes and budgets, fit scaling laws, and say what they buy at scales beyond.

    What `moekit compare --ladder` does. A ladder that was stopped or killed goes on with `resume_ladder`.

    Args:
        out: a folder for everything, ladder.json, report.html and a folder a rung among it; it must hold no ladder yet.
        data: files, folders or hub ids (owner/name) of text; none for the embedded corpus.
        text_column: where rows (jsonl, csv, parquet, hub) hold their text.
        domain_column: where rows name their domain.
        contestants: names, contestants of your own, or a YAML file; None for those of the default set that have the
            FLOPs of its first.
        largest: the size of the largest rung: xs, s, m or l; three smaller ones come before it.
        sizes: all sizes instead, of `moekit.comparison.ladder.rungs.LADDER_SIZES`, the smallest first.
        seeds: runs of each contestant at each rung.
        budget_seconds: for the whole ladder; None for an hour, or as long as it takes where that is too little.
        tokens: training tokens of a run at the largest rung, instead of a budget; smaller rungs get fewer, as N is.
        at: a scale that is asked about besides, as `parse_scale` reads it.
        command: what repeats the ladder, for the report.
        progress: gets how far the runs are.

    Returns:
        What ladder.json holds.

    Raises:
        UsageError: before any training, where an argument is wrong, `out` holds a ladder, or the budget is too small.
        Interrupted: where it was stopped; all state is saved.
        MoekitError: where no run could go on.

    Examples:
        >>> from moekit.comparison import compare_ladder
        >>> results = compare_ladder("runs/ladder", contestants=["dense", "moe"], tokens=2_000_000, at="70b")
        >>> results.at.sentences
    """
    if budget_seconds is not None and tokens is not None:
        raise UsageError("A budget and a number of tokens exclude each other; give one of them.")
    names = tuple(sizes) if sizes else rungs.sizes_up_to(largest)
    chosen = rungs.choose_for(contestants, names)
    target = parse_scale(at) if at else None
    folder = LadderFolder(Path(out))
    if folder.plan.exists() or ComparisonFolder(folder.root).plan.exists():
        raise UsageError(f"{folder.root} holds a comparison already: resume it, or name another folder.")
    _logger.info("Reading the text")
    text = load_corpus(tuple(map(str, data)), text_column=text_column, domain_column=domain_column, say=_logger.warning)
    text.save(folder.corpus)
    requests = {
        name: ComparisonRequest(
            contestants=found.required,
            baseline=found.baseline,
            size_name=name,
            size=LADDER_SIZES[name],
            seeds=seeds,
            command=command,
            budget_asked=budget_seconds is not None,
        )
        for name, found in chosen.items()
    }
    planned = _planned(folder, requests, tokens, budget_seconds)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    folder.write_plan(LadderPlan(moekit=__version__, created=created, command=command, rungs=planned))
    return resume_ladder(out, target=target, progress=progress)


def resume_ladder(
    out: str | Path, *, target: TargetScale | None = None, progress: Progress = no_progress
) -> LadderResults:
    """Go on with the ladder in `out`; what is done is not done again, but for the laws, which are fitted anew.

    Args:
        out: the folder that `compare_ladder` was given.
        target: a scale that is asked about besides.
        progress: gets how far the runs are.

    Raises:
        Interrupted: where it was stopped again; all state is saved.
        MoekitError: where there is no ladder, or it cannot go on.
    """
    folder = LadderFolder(Path(out))
    plan = folder.read_plan()
    results = []
    with Task(progress, "rungs of the ladder", total=len(plan.rungs), unit="runs") as all_rungs:
        for number, rung in enumerate(plan.rungs, start=1):
            results.append(_climbed(folder, rung, f"Rung {number} of {len(plan.rungs)}", progress))
            all_rungs.advance(1)
    _logger.info("Fitting laws")
    found = analyse(results, [rung.folder for rung in plan.rungs], command=plan.command, target=target)
    write_ladder(found, folder.results)
    files.write_text(folder.report, render_ladder(found))
    return found


def _planned(
    folder: LadderFolder, requests: dict[str, ComparisonRequest], tokens: int | None, budget_seconds: float | None
) -> tuple[PlannedRung, ...]:
    """Plan every rung, each in its folder: the largest by the budget, where there is one, the others by its tokens."""
    names = tuple(requests)
    largest = names[-1]
    if tokens is None:
        tokens = _affordable(folder, names, requests[largest], budget_seconds)
    made = []
    for number, name in enumerate(names, start=1):
        rung = PlannedRung(folder=f"rung-{number}-{name}", size=name, tokens=rungs.tokens_at(name, largest, tokens))
        _prepared(folder, rung.folder, replace(requests[name], tokens=rung.tokens))
        made.append(rung)
    return tuple(made)


def _affordable(
    folder: LadderFolder, sizes: tuple[str, ...], request: ComparisonRequest, budget_seconds: float | None
) -> int:
    """Find how many tokens a run of the largest rung may read, by measuring what it costs here.

    Raises UsageError where the budget is the user's and leaves the smallest rung too few steps.
    """
    seconds = (budget_seconds or rungs.DEFAULT_LADDER_SECONDS) * rungs.largest_share(sizes)
    trial = folder.root / "measuring"
    try:
        plan = _prepared(folder, trial.name, replace(request, budget_seconds=seconds))
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    tokens, fewest = plan.training.steps * plan.training.step_tokens, rungs.fewest_tokens(sizes)
    if tokens >= fewest:
        return tokens
    needed = duration_text((budget_seconds or rungs.DEFAULT_LADDER_SECONDS) * fewest / tokens)
    few = f"The budget leaves the smallest rung fewer than {rungs.FEWEST_STEPS} steps; the ladder needs about {needed}"
    if budget_seconds is not None:
        raise UsageError(f"{few}: raise --budget, or take fewer contestants or seeds or a smaller --size.")
    _logger.warning("%s. This is the default budget: going on, with as little as says something.", few)
    return fewest


def _prepared(folder: LadderFolder, name: str, request: ComparisonRequest) -> ComparisonPlan:
    """Plan one rung in its folder, on the ladder's text."""
    return experiment.prepare(request, Corpus.open(folder.corpus), ComparisonFolder(folder.rung(name)))


def _climbed(folder: LadderFolder, rung: PlannedRung, name: str, progress: Progress) -> Results:
    """Do one rung, or read what it left when it was done before."""
    root = folder.rung(rung.folder)
    done = ComparisonFolder(root).results
    if done.exists():
        return read_results(done)
    _logger.info("%s: size %s, %s tokens a run", name, rung.size, count_text(rung.tokens))
    return experiment.resume(root, progress=progress)
