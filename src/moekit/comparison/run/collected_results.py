"""The results of a comparison, put together from its plan and its runs."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np

from moekit.comparison.results_schema import (
    ContestantResults,
    CorpusDomain,
    CorpusRecord,
    CurvePoint,
    LeftOutText,
    Phase,
    Results,
    Run,
    Settings,
    Trial,
)
from moekit.comparison.run.measurements import sums_by_part
from moekit.comparison.run.serving.served_figures import ServedFigures
from moekit.comparison.spec.comparison_plan import LEARNING_RATE_RULE, ComparisonPlan, PlannedContestant
from moekit.comparison.spec.contestants import caveat_of
from moekit.comparison.spec.model_costs import costs_of
from moekit.comparison.spec.run_order import ORDER_TEXT
from moekit.comparison.spec.tuning_plan import TUNED_TEXT, learns
from moekit.data import Corpus, held_out_parts, held_out_windows, is_scored
from moekit.training import AVERAGE_TEXT, SCHEDULE_TEXT, TrainingConfig


def collect_results(
    plan: ComparisonPlan,
    corpus: Corpus,
    runs: dict[str, list[Run]],
    served: ServedFigures,
    wall_seconds: float,
    trials: list[Trial],
) -> Results:
    """Put together what a comparison planned and what its runs found.

    Args:
        plan: whose contestants have all run.
        corpus: that they were trained and measured on.
        runs: by the contestant's name, one a seed.
        served: what was measured of the models as they are served.
        wall_seconds: of the sitting that finished the comparison.
        trials: of the search for learning rates; none where there was no search.
    """
    training = plan.training
    tokens = training.steps * training.step_tokens
    return Results(
        moekit=plan.moekit,
        created=plan.created,
        command=plan.command,
        wall_seconds=wall_seconds,
        corpus=_corpus_record(corpus, tokens, plan),
        machine=plan.machine,
        settings=Settings(
            size=plan.size,
            budget_seconds=plan.budget_seconds,
            tokens=tokens,
            seeds=list(plan.seeds),
            batch_tokens=training.step_tokens,
            context=training.context,
            learning_rate=training.learning_rate,
            learning_rate_rule=TUNED_TEXT if trials else LEARNING_RATE_RULE,
            trials=trials,
            tuning_seconds=plan.tuning_seconds,
            schedule=SCHEDULE_TEXT,
            optimizer=f"AdamW, betas {training.beta1} and {training.beta2}, weight decay {training.weight_decay}, "
            f"gradients clipped to norm {training.clip_norm}",
            measured_weights=AVERAGE_TEXT,
            held_out_tokens=sum(map(sum, _measured_bytes(corpus, plan).values())),
            company=_company(plan),
        ),
        baseline=plan.baseline,
        contestants=[contestant_results(planned, runs[planned.name], training, served) for planned in plan.contestants],
    )


def _company(plan: ComparisonPlan) -> str:
    """Say under what conditions seconds were taken."""
    lanes = plan.lanes
    threads = "" if lanes.threads is None else f" with {lanes.threads} thread{'s' * (lanes.threads > 1)}"
    if lanes.count == 1:
        return f"one run at a time{threads}, {ORDER_TEXT}"
    return f"{lanes.count} runs at a time, each on cores of its own{threads}, {ORDER_TEXT}"


def _corpus_record(corpus: Corpus, tokens: int, plan: ComparisonPlan) -> CorpusRecord:
    measured = _measured_bytes(corpus, plan)
    domains = [
        CorpusDomain(
            name=domain.name,
            train_bytes=domain.train_bytes,
            held_out_bytes=domain.held_out_bytes,
            train_files=domain.train_files,
            held_out_files=domain.held_out_files,
            unigram_bits_per_byte=corpus.unigram_bits_per_byte(domain.name),
            measured_bytes=measured[domain.name],
            epochs=tokens / len(corpus.domains) / domain.train_bytes,
        )
        for domain in corpus.domains
    ]
    return CorpusRecord(
        name=corpus.name,
        sha256=corpus.sha256,
        domains=domains,
        unigram_bits_per_byte=float(
            np.average(
                [domain.unigram_bits_per_byte for domain in domains],
                weights=[sum(domain.measured_bytes) for domain in domains],
            )
        ),
        left_out=[LeftOutText(**asdict(one)) for one in corpus.left_out],
    )


def _measured_bytes(corpus: Corpus, plan: ComparisonPlan) -> dict[str, list[int]]:
    """Count the bytes of the final figures, by domain and part."""
    wanted = {"context": plan.training.context, "tokens_per_domain": plan.final_tokens}
    parts = held_out_parts(corpus, **wanted)
    return {
        domain: [round(count) for count in sums_by_part(is_scored(windows_NT[:, 1:]), parts[domain])]
        for domain, windows_NT in held_out_windows(corpus, **wanted).items()
    }


def contestant_results(
    planned: PlannedContestant, runs: list[Run], training: TrainingConfig, served: ServedFigures
) -> ContestantResults:
    """Say what a contestant's configuration says, and means over its finished runs."""
    runs = [served.with_decode(planned.name, run) for run in runs]
    done = [run for run in runs if run.status == "done"]
    costs = costs_of(planned.config, training.context)
    by_part = costs.params_by_part or _counted_parts(done)
    table_bytes = _mean(run.weight_bytes for run in done)
    decode_ms = [milliseconds for run in done for milliseconds in run.token_ms]
    peaks = [run.peak_memory_bytes for run in done if run.peak_memory_bytes is not None]
    domains = done[0].bits_per_byte_by_domain if done else {}
    return ContestantResults(
        name=planned.name,
        description=planned.description,
        caveat=caveat_of(planned.config),
        config=planned.config,
        learning_rate=training.learning_rate * planned.rate_factor if learns(planned) else None,
        params_total=sum(by_part.values()) if by_part else None,
        params_active=costs.params_active,
        params_by_part=by_part,
        flops_per_token=costs.flops_per_token,
        phases=_phases(planned, training),
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
        served_size=served.sizes.get(planned.name),
        no_served_size=served.left_out.get(planned.name),
        curve=[_mean_point(points) for points in zip(*(run.curve for run in done), strict=True)],
        runs=runs,
    )


def _phases(planned: PlannedContestant, training: TrainingConfig) -> list[Phase]:
    if planned.upcycled is None:
        return []
    return [
        Phase(name=name, steps=steps, tokens=steps * training.step_tokens, flops_per_token=flops)
        for name, steps, flops in zip(
            ("dense", "upcycled"), planned.upcycled.steps, planned.upcycled.flops_per_token, strict=True
        )
    ]


def _counted_parts(done: Sequence[Run]) -> dict[str, int]:
    """Give means over the runs of what only the trained model says; empty where no run did."""
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
