"""The main job: train all contestants on the same data at the same compute, measure them, write the report."""

import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np

import moekit
from moekit.compare.report import write_report
from moekit.compare.results_schema import (
    ContestantResults,
    CorpusDomain,
    CorpusRecord,
    CurvePoint,
    Phase,
    Results,
    Run,
    Settings,
    write_results,
)
from moekit.compare.run import worker_process
from moekit.compare.run.run_task import Calibration
from moekit.compare.run.step_budget import JOINING_STEPS, MINIMUM_STEPS, BudgetTooSmall, affordable_steps, leaves_room
from moekit.compare.spec.comparison_plan import (
    LEARNING_RATE_RULE,
    ComparisonFolder,
    ComparisonPlan,
    PlannedContestant,
    learning_rate_for,
    measured_steps,
)
from moekit.compare.spec.comparison_request import ComparisonRequest, check_tensorboard
from moekit.compare.spec.contestants import Contestant, Size, caveat_of
from moekit.compare.spec.machine import this_machine
from moekit.compare.spec.model_costs import costs_of
from moekit.core import hardware
from moekit.core.errors import UsageError
from moekit.data import Corpus, check_large_enough
from moekit.training import AVERAGE_TEXT, SCHEDULE_TEXT, StepReport, TrainingConfig

# Held-out tokens per domain on the way and at the end; the way is paid for often, the end once.
_CURVE_TOKENS = 4096
_FINAL_TOKENS = 16384
_WARMUP_STEPS = 50


class Listener:
    """What an experiment tells while it works; a display overrides what it shows."""

    def message(self, text: str) -> None:
        """Something happened that a user wants to know."""

    def planned(self, plan: ComparisonPlan, runs: int) -> None:
        """Training is about to start."""

    def run_started(self, contestant: str, seed: int) -> None:
        """A run starts or goes on."""

    def step(self, report: StepReport) -> None:
        """The current run took a step."""

    def run_ended(self, contestant: str, run: Run) -> None:
        """A run ended, or its result was there already."""


def start(request: ComparisonRequest, corpus: Corpus, folder: ComparisonFolder, listener: Listener) -> Results:
    """Plan, train, measure and report a new comparison in an empty `folder`.

    Raises UsageError before any training where the corpus or the budget is too small.
    """
    began = time.monotonic()
    plan = new_plan(request)
    check_large_enough(corpus, sequences=plan.training.sequences, context=plan.training.context)
    corpus.save(folder.corpus)
    folder.write_plan(plan)
    return finish(_settled(plan, folder, listener, began), folder, listener, began)


def new_plan(request: ComparisonRequest) -> ComparisonPlan:
    """What is known before the speed of this machine is: with a budget, the number of steps comes later."""
    training = _training(request)
    return ComparisonPlan(
        moekit=moekit.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        size=request.size_name,
        budget_seconds=request.budget_seconds,
        budget_asked=request.budget_asked,
        machine=this_machine(training.precision),
        contestants=tuple(_entry(each, request.size) for each in (*request.contestants, *request.optional)),
        # Without a budget there is nothing that they could take from the others.
        optional=tuple(each.name for each in request.optional) if request.budget_seconds is not None else (),
        baseline=request.baseline,
        seeds=tuple(range(request.seeds)),
        training=training,
        curve_tokens=_CURVE_TOKENS,
        final_tokens=_FINAL_TOKENS,
        tensorboard=request.tensorboard,
    ).with_training(training)


def _entry(contestant: Contestant, size: Size) -> PlannedContestant:
    config, phases = contestant.config(size), None
    if contestant.upcycle is not None:
        config, phases = contestant.upcycled(size)
    return PlannedContestant(name=contestant.name, description=contestant.description, config=config, upcycled=phases)


def resume(folder: ComparisonFolder, listener: Listener) -> Results:
    """Go on with the comparison in `folder` where it was stopped or killed.

    Raises Interrupted where it was stopped (all state is saved), MoekitError where it cannot go on.
    """
    began = time.monotonic()
    return finish(_settled(folder.read_plan(), folder, listener, began), folder, listener, began)


def finish(plan: ComparisonPlan, folder: ComparisonFolder, listener: Listener, began: float) -> Results:
    """Do what of the plan is not done yet, then write results and report."""
    runs: dict[str, list[Run]] = {entry.name: [] for entry in plan.contestants}
    listener.planned(plan, len(plan.seeds) * len(plan.contestants))
    # Seed by seed, so that a machine that slows down over the hours slows all contestants alike.
    for seed in plan.seeds:
        for entry in plan.contestants:
            run = _run(folder, entry.name, seed, listener)
            runs[entry.name].append(run)
            listener.run_ended(entry.name, run)
    results = _results(plan, Corpus.open(folder.corpus), runs, wall_seconds=time.monotonic() - began)
    write_results(results, folder.results)
    write_report(results, folder.report)
    return results


def _run(folder: ComparisonFolder, contestant: str, seed: int, listener: Listener) -> Run:
    result = folder.result(contestant, seed)
    if result.exists():
        return Run.model_validate_json(result.read_text(encoding="utf-8"))
    listener.run_started(contestant, seed)
    return worker_process.train(folder, contestant, seed, listener.step)


def _training(request: ComparisonRequest) -> TrainingConfig:
    size = request.size
    step_tokens = size.sequences * size.context
    steps = max(1, (request.tokens or step_tokens) // step_tokens)
    return TrainingConfig(
        steps=steps,
        sequences=size.sequences,
        micro_sequences=size.sequences,
        context=size.context,
        learning_rate=learning_rate_for(size.width),
        warmup_steps=_WARMUP_STEPS,
        precision=hardware.fastest_precision(),
        evaluate_at=measured_steps(steps),
    )


def _settled(plan: ComparisonPlan, folder: ComparisonFolder, listener: Listener, began: float) -> ComparisonPlan:
    """The plan with its number of steps, which under a budget is found out here once and then kept in the folder.

    Raises UsageError where the budget is too small, or the plan wants TensorBoard and it is missing.
    """
    if plan.tensorboard:
        check_tensorboard()
    if plan.budget_seconds is None or plan.training.steps >= MINIMUM_STEPS:
        return plan
    try:
        plan = _within_budget(plan, folder, listener, plan.budget_seconds - (time.monotonic() - began))
    except UsageError:
        folder.plan.unlink()  # nothing was trained: there is nothing to resume
        raise
    folder.write_plan(plan)
    return plan


def _within_budget(
    plan: ComparisonPlan, folder: ComparisonFolder, listener: Listener, seconds: float
) -> ComparisonPlan:
    """The plan with as many steps as `seconds` allow, by what each contestant is measured to cost here."""
    ends = time.monotonic() + seconds
    seeds = len(plan.seeds)
    required = [entry for entry in plan.contestants if entry.name not in plan.optional]
    calibrations = [found for entry in required if (found := _calibrated(plan, entry, folder, listener))]
    if not calibrations:
        raise UsageError("No contestant could take a single step here; try a smaller --size.")
    taking = [entry.name for entry in required]
    for entry in map(plan.entry, plan.optional):
        # Where there is no room without it, there is none with it: it need not be measured.
        if not leaves_room(calibrations, seeds=seeds, seconds=ends - time.monotonic()):
            continue
        found = _calibrated(plan, entry, folder, listener)
        if found and leaves_room([*calibrations, found], seeds=seeds, seconds=ends - time.monotonic()):
            calibrations.append(found)
            taking.append(entry.name)
    if out := [name for name in plan.optional if name not in taking]:
        listener.message(
            f"Left out: {', '.join(out)}. The budget has to leave every run {JOINING_STEPS} steps with them; "
            "--contestants takes them all the same."
        )
    try:
        steps = affordable_steps(calibrations, seeds=seeds, seconds=ends - time.monotonic())
    except BudgetTooSmall as error:
        if plan.budget_asked:
            raise
        # Nobody asked for just this budget: better a comparison that takes longer than none.
        listener.message(f"{error} This is the default budget: going on, with as little as says something.")
        steps = MINIMUM_STEPS
    training = plan.training.model_copy(update={"steps": steps, "evaluate_at": measured_steps(steps)})
    contestants = tuple(entry for entry in plan.contestants if entry.name in taking)
    return plan.model_copy(update={"contestants": contestants, "optional": ()}).with_training(training)


def _calibrated(
    plan: ComparisonPlan, entry: PlannedContestant, folder: ComparisonFolder, listener: Listener
) -> Calibration | None:
    """What the contestant costs here; None, which is said, where it cannot even be tried."""
    listener.message(f"Measuring the speed of {entry.name}")
    try:
        return worker_process.calibrate(folder, entry.name, plan.seeds[0])
    except worker_process.WorkerDied as death:
        listener.message(f"{entry.name} could not be measured: {death}")
        return None


def _results(plan: ComparisonPlan, corpus: Corpus, runs: dict[str, list[Run]], wall_seconds: float) -> Results:
    training = plan.training
    tokens = training.steps * training.step_tokens
    return Results(
        moekit=plan.moekit,
        created=plan.created,
        command=plan.command,
        wall_seconds=wall_seconds,
        corpus=_corpus_record(corpus, tokens),
        machine=plan.machine,
        settings=Settings(
            size=plan.size,
            budget_seconds=plan.budget_seconds,
            tokens=tokens,
            seeds=list(plan.seeds),
            batch_tokens=training.step_tokens,
            context=training.context,
            learning_rate=training.learning_rate,
            learning_rate_rule=LEARNING_RATE_RULE,
            schedule=SCHEDULE_TEXT,
            optimizer=f"AdamW, betas {training.beta1} and {training.beta2}, weight decay {training.weight_decay}, "
            f"gradients clipped to norm {training.clip_norm}",
            measured_weights=AVERAGE_TEXT,
            held_out_tokens=plan.final_tokens * len(corpus.domains),
        ),
        baseline=plan.baseline,
        contestants=[contestant_record(entry, runs[entry.name], training) for entry in plan.contestants],
    )


def _corpus_record(corpus: Corpus, tokens: int) -> CorpusRecord:
    domains = [
        CorpusDomain(
            name=domain.name,
            train_bytes=domain.train_bytes,
            held_out_bytes=domain.held_out_bytes,
            train_files=domain.train_files,
            held_out_files=domain.held_out_files,
            unigram_bits_per_byte=corpus.unigram_bits_per_byte(domain.name),
            epochs=tokens / len(corpus.domains) / domain.train_bytes,
        )
        for domain in corpus.domains
    ]
    return CorpusRecord(
        name=corpus.name,
        sha256=corpus.sha256,
        domains=domains,
        unigram_bits_per_byte=corpus.unigram_bits_per_byte(),
    )


def contestant_record(entry: PlannedContestant, runs: list[Run], training: TrainingConfig) -> ContestantResults:
    """What the configuration says of a contestant, and means over its finished runs."""
    done = [run for run in runs if run.status == "done"]
    costs = costs_of(entry.config, training.context)
    by_part = costs.params_by_part or _counted_parts(done)
    table_bytes = _mean(run.weight_bytes for run in done)
    decode_ms = [milliseconds for run in done for milliseconds in run.decode_ms]
    peaks = [run.peak_memory_bytes for run in done if run.peak_memory_bytes is not None]
    domains = done[0].bits_per_byte_by_domain if done else {}
    return ContestantResults(
        name=entry.name,
        description=entry.description,
        caveat=caveat_of(entry.config),
        config=entry.config,
        params_total=sum(by_part.values()) if by_part else None,
        params_active=costs.params_active,
        params_by_part=by_part,
        flops_per_token=costs.flops_per_token,
        phases=_phases(entry, training),
        inference_flops_per_token=costs.inference_flops_per_token,
        weight_bytes=costs.weight_bytes if table_bytes is None else round(table_bytes),
        train_tokens_per_second=_mean(run.train_tokens_per_second for run in done),
        seconds=_mean(run.seconds for run in done),
        peak_memory_bytes=round(statistics.fmean(peaks)) if peaks else None,
        bits_per_byte=_mean(run.bits_per_byte for run in done),
        bits_per_byte_by_domain={
            name: statistics.fmean(run.bits_per_byte_by_domain[name] for run in done) for name in domains
        },
        decode_ms_per_token_median=float(np.median(decode_ms)) if decode_ms else None,
        decode_ms_per_token_p95=float(np.quantile(decode_ms, 0.95)) if decode_ms else None,
        curve=[_mean_point(points) for points in zip(*(run.curve for run in done), strict=True)],
        runs=runs,
    )


def _phases(entry: PlannedContestant, training: TrainingConfig) -> list[Phase]:
    if entry.upcycled is None:
        return []
    return [
        Phase(name=name, steps=steps, tokens=steps * training.step_tokens, flops_per_token=flops)
        for name, steps, flops in zip(
            ("dense", "upcycled"), entry.upcycled.steps, entry.upcycled.flops_per_token, strict=True
        )
    ]


def _counted_parts(done: Sequence[Run]) -> dict[str, int]:
    """Means over the runs of what only the trained model says; empty where no run did."""
    parts = done[0].params_by_part if done else {}
    return {part: round(statistics.fmean(run.params_by_part[part] for run in done)) for part in parts}


def _mean_point(points: Sequence[CurvePoint]) -> CurvePoint:
    first = points[0]
    return first.model_copy(
        update={
            field: statistics.fmean(getattr(point, field) for point in points)
            for field in ("seconds", "bits_per_byte", "train_loss")
        }
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
