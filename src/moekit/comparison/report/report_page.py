"""The page of one comparison: what stands on it, in which order is for its template."""

from moekit.comparison.analysis.baseline_comparison import kind_of
from moekit.comparison.analysis.served_wording import served_sentences
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.report import detail_charts, page_tables
from moekit.comparison.report.chart_parts import looks_of
from moekit.comparison.report.key_differences import column_kinds, key_differences
from moekit.comparison.report.learning_curve_chart import learning_curves
from moekit.comparison.report.leverage_charts import budget, leverage
from moekit.comparison.report.page_frame import page_of
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.core import formatting


def render(results: Results) -> str:
    """Write the whole report as one HTML document."""
    verdict = judge(results)
    against = verdict.against
    looks = looks_of([(one.name, kind_of(one.config)) for one in results.contestants], results.baseline)
    return page_of(
        "report.html",
        looks=looks,
        charts=[
            learning_curves(results, looks),
            leverage(results, against, looks),
            budget(results, against, looks),
            detail_charts.domains(results, looks),
            detail_charts.decode(results, looks),
            detail_charts.served_ratios(against, looks, results.baseline),
            detail_charts.routing(results, looks),
            detail_charts.experts(results),
        ],
        results=results,
        verdict=verdict,
        summary=page_tables.summary_of(results),
        differences=key_differences(results, against),
        kinds=column_kinds(results),
        counted=[one.name for one in results.contestants if kind_of(one.config) == "ngram"],
        phases={one.name: _phases_text(one) for one in results.contestants if one.phases},
        tables={
            "budget": page_tables.budget_table(results, against),
            "domains": page_tables.domain_table(results, against),
            "served": page_tables.served_table_of(results, "trained"),
            "grown": page_tables.served_table_of(results, "grown"),
            "routing": page_tables.routing_table(results),
            "tuning": page_tables.tuning_table(results),
            "left_out": page_tables.left_out_table(results),
        },
        served=served_sentences(results),
        not_grown={one.name: one.no_served_size for one in results.contestants if one.no_served_size},
        as_served={one.name: bits for one in results.contestants if (bits := _bits_as_served(one)) is not None},
        failures=_failures(results),
        measured=_measured(results),
        corpus=page_tables.corpus_table(results),
    )


def _bits_as_served(contestant: ContestantResults) -> float | None:
    """Give bits per byte without a capacity, a mean over the runs; None where there is none anyway."""
    found = [run.bits_per_byte_as_served for run in contestant.runs if run.bits_per_byte_as_served is not None]
    return sum(found) / len(found) if found else None


def _failures(results: Results) -> list[tuple[str, int, str]]:
    """List contestant, seed and what happened, for each run that failed, spiked, or had a router that collapsed."""
    events = []
    for one in results.contestants:
        for run in one.runs:
            what = [f"failed: {run.failure or 'no reason given'}"] if run.status == "failed" else []
            if run.loss_spikes:
                what.append(f"{run.loss_spikes} loss {'spike' if run.loss_spikes == 1 else 'spikes'}")
            what += run.warnings
            if what:
                events.append((one.name, run.seed, "; ".join(what)))
    return events


def _measured(results: Results) -> list[tuple[str, str]]:
    """List settings and machine, as terms and their descriptions."""
    settings, machine = results.settings, results.machine
    budget = "" if settings.budget_seconds is None else f", budget {formatting.duration_text(settings.budget_seconds)}"
    return [
        ("Size", f"{settings.size}{budget}"),
        (
            "Training",
            f"{settings.tokens:,} tokens a run, {settings.batch_tokens:,} a step, context {settings.context:,}",
        ),
        ("Seeds", ", ".join(map(str, settings.seeds))),
        ("Optimiser", settings.optimizer),
        ("Learning rate", f"{settings.learning_rate:g}: {settings.learning_rate_rule}"),
        ("Schedule", settings.schedule),
        ("Measured weights", settings.measured_weights),
        (
            "Held-out text",
            f"{settings.held_out_tokens:,} tokens for the final figures, {_share_held_out(results):.2g} % of it",
        ),
        ("Side by side", settings.company),
        ("Machine", f"{machine.cpu}, {machine.cores} cores, {formatting.bytes_text(machine.memory_bytes)}"),
        ("Software", f"moekit {results.moekit}, torch {machine.torch}, Python {machine.python}, {machine.system}"),
        ("Precision", f"{machine.precision} matrix products in training"),
        (
            "Took",
            f"{formatting.duration_text(results.wall_seconds)} in the sitting that finished it, all measuring included",
        ),
        ("Made", results.created),
    ]


def _share_held_out(results: Results) -> float:
    """Give the share, in percent, of the held-out text that the final figures are measured on."""
    return 100 * results.settings.held_out_tokens / sum(domain.held_out_bytes for domain in results.corpus.domains)


def _phases_text(contestant: ContestantResults) -> str:
    parts = [
        f"{phase.tokens:,} tokens as {phase.name}, of {formatting.count_text(phase.flops_per_token)} FLOPs each"
        for phase in contestant.phases
    ]
    return ", then ".join(parts)
