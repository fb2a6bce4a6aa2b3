"""The page: everything that stands in it as text and tables, and the template that it is poured into."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import jinja2
from plotly.offline import get_plotlyjs

from moekit.comparison.analysis.baseline_comparison import SHARES, AgainstBaseline, finished, kind_of
from moekit.comparison.analysis.estimates import Estimate
from moekit.comparison.analysis.learning_curves import Axis
from moekit.comparison.analysis.summary_table import SUMMARY_HEADINGS, summary_table
from moekit.comparison.analysis.verdict import Verdict, judge
from moekit.comparison.analysis.verdict_wording import NONE, reached_text, seeds_text, signed
from moekit.comparison.report import charts, escaping
from moekit.comparison.report.key_differences import column_kinds, key_differences
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.config import HashConfig, ModelConfig, MoEConfig, RouterConfig
from moekit.core import formatting


@dataclass(frozen=True)
class Table:
    """A table of the page.

    headings: of the columns, the first that of the row headings. rows: their cells, the first the row's heading.
    highlight: the heading of the row that stands out.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: str | None = None


@dataclass(frozen=True)
class Tile:
    """One figure of the headline's contestant against the baseline."""

    label: str
    figure: str
    note: str


def render(results: Results) -> str:
    """Write the whole report as one HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moekit.comparison.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = escaping.code_spans
    verdict = judge(results)
    found = [
        charts.curves(results),
        charts.budget(results, verdict.against),
        charts.domains(results),
        charts.decode(results),
        charts.routing(results),
        charts.experts(results),
    ]
    drawn = {chart.id: chart for chart in found if chart}
    loader = environment.loader
    assert loader is not None
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    plotly = get_plotlyjs()
    return environment.get_template("page.html").render(
        results=results,
        verdict=verdict,
        looks={look.name: look for look in charts.looks(results)},
        tiles=_tiles(results, verdict),
        summary=_summary(results),
        differences=key_differences(results, verdict.against),
        kinds=column_kinds(results),
        counted=[one.name for one in results.contestants if kind_of(one.config) == "ngram"],
        phases={one.name: _phases_text(one) for one in results.contestants if one.phases},
        charts=drawn,
        chart_data=escaping.script_json({id: [asdict(one) for one in chart.variants] for id, chart in drawn.items()}),
        tables={
            "budget": _budget_table(results, verdict.against),
            "domains": _domain_table(results, verdict.against),
            "routing": _routing_table(results),
            "left_out": _left_out_table(results),
        },
        failures=_failures(results),
        measured=_measured(results),
        corpus=_corpus_table(results),
        style=style,
        script=script,
        plotly=plotly,
        policy=escaping.content_security_policy([plotly, script]),
    )


def _tiles(results: Results, verdict: Verdict) -> list[Tile]:
    """Say what the headline's contestant gains and costs; gives nothing where there is none."""
    if verdict.leader is None:
        return []
    one = verdict.against[verdict.leader]
    final = one.final
    tiles = []
    if one.difference:
        tiles.append(Tile("Final bits per byte", signed(one.difference.mean), _spread(one.difference, signed)))
    axes: tuple[tuple[Axis, str], ...] = (("flops", "FLOPs"), ("seconds", "Seconds"))
    for axis, noun in axes:
        label = f"{noun} to the baseline's level"
        if final.ratios is None:
            tiles.append(Tile(label, "not reached", f"in {final.seeds} of {seeds_text(final.seeds)}"))
        else:
            some = "" if final.reached == final.seeds else f", reached by {final.reached} of {seeds_text(final.seeds)}"
            if axis not in final.ratios:  # the baseline multiplies nothing
                continue
            estimate = final.ratios[axis]
            tiles.append(Tile(label, f"{estimate.mean:.2f}×", _spread(estimate, "{:.2f}".format) + some))
    if one.memory:
        tiles.append(Tile("Training memory", f"{one.memory.mean:.2f}×", _spread(one.memory, "{:.2f}".format)))
    return tiles


def _spread(estimate: Estimate, text: Callable[[float], str]) -> str:
    what = {"interval": "95 %: ", "range": "two seeds: ", "none": "one seed"}[estimate.spread]
    return what if estimate.spread == "none" else f"{what}{text(estimate.low)} to {text(estimate.high)}"


def _summary(results: Results) -> Table:
    rows = [list(asdict(row).values()) for row in summary_table(results)]
    caption = "Means over the seeds that finished"
    if starred := [one.name for one in results.contestants if one.caveat]:
        caption += f"; *: not comparable with the others, as said above ({', '.join(starred)})"
    return Table(caption, list(asdict(SUMMARY_HEADINGS).values()), rows, highlight=results.baseline)


def _budget_table(results: Results, against: dict[str, AgainstBaseline]) -> Table:
    nouns: tuple[tuple[Axis, str], ...] = (("flops", "FLOPs"), ("seconds", "seconds"))
    rows = [
        [f"{one.name}, {noun}"] + [reached_text(one, reach, axis) for reach in one.reach]
        for one in against.values()
        for axis, noun in nouns
    ]
    headings = ["Contestant", *(f"{100 * share:.0f} %" for share in SHARES)]
    return Table("What it took to reach the baseline's level, over what the baseline took", headings, rows)


def _domain_table(results: Results, against: dict[str, AgainstBaseline]) -> Table:
    def figure(one: ContestantResults, domain: str) -> str:
        value = one.bits_per_byte_by_domain.get(domain)
        if value is None:
            return NONE
        versus = against.get(one.name)
        difference = versus.domains.get(domain) if versus else None
        return f"{value:.3f}" + (f" ({signed(difference.mean)})" if difference else "")

    rows = [
        [domain.name, *(figure(one, domain.name) for one in results.contestants), f"{domain.unigram_bits_per_byte:.3f}"]
        for domain in results.corpus.domains
    ]
    headings = ["Domain", *(one.name for one in results.contestants), "Byte frequencies"]
    return Table("Held-out bits per byte (in brackets: less the baseline's, paired by seed)", headings, rows)


def _routing_table(results: Results) -> Table:
    rows = []
    for one in results.contestants:
        layers = [layer for run in finished(one) for layer in run.routing]
        for number in sorted({layer.layer for layer in layers}):
            here = [layer for layer in layers if layer.layer == number]
            count = len(here)
            router = _router(one, number)
            learned, drops = not isinstance(router, HashConfig), router.capacity_factor is not None
            dropped = 100 * sum(layer.dropped_share for layer in here) / count
            rows.append(
                [
                    f"{one.name}, layer\u00a0{number}",
                    f"{sum(layer.load_max_over_mean for layer in here) / count:.2f}",
                    f"{sum(layer.load_entropy for layer in here) / count:.3f}",
                    f"{max(layer.dead_experts for layer in here)}",
                    f"{dropped:.1f} %" if drops else NONE,
                    f"{sum(layer.mean_top_score for layer in here) / count:.3f}" if learned else NONE,
                    f"{sum(layer.logit_norm for layer in here) / count:.2f}" if learned else NONE,
                ]
            )
    headings = ["Layer", "Busiest over mean", "Load entropy", "Dead experts", "Dropped", "Top score", "Logit norm"]
    caption = (
        "On held-out text. Means over seeds; of dead experts the most in any seed. Dropped: of the choices, where "
        "there is a capacity. Top score and logit norm: where the router learns."
    )
    return Table(caption, headings, rows)


def _router(one: ContestantResults, layer: int) -> RouterConfig:
    assert isinstance(one.config, ModelConfig)
    moe = one.config.feed_forwards[layer]
    assert isinstance(moe, MoEConfig)
    return moe.router


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
        ("Held-out text", f"{settings.held_out_tokens:,} tokens for the final figures"),
        ("Machine", f"{machine.cpu}, {machine.cores} cores, {formatting.bytes_text(machine.memory_bytes)}"),
        ("Software", f"moekit {results.moekit}, torch {machine.torch}, Python {machine.python}, {machine.system}"),
        ("Precision", f"{machine.precision} matrix products in training"),
        (
            "Took",
            f"{formatting.duration_text(results.wall_seconds)} in the sitting that finished it, all measuring included",
        ),
        ("Made", results.created),
    ]


def _phases_text(contestant: ContestantResults) -> str:
    parts = [
        f"{phase.tokens:,} tokens as {phase.name}, of {formatting.count_text(phase.flops_per_token)} FLOPs each"
        for phase in contestant.phases
    ]
    return ", then ".join(parts)


def _left_out_table(results: Results) -> Table:
    rows = [
        [one.domain, f"{one.texts:,}", formatting.bytes_text(one.bytes).replace(" ", "\u00a0"), one.reason, one.example]
        for one in results.corpus.left_out
    ]
    return Table(
        "Files, rows and passages that were given and are in none of the domains",
        ["Domain", "Texts", "Bytes", "Why", "Such as"],
        rows,
    )


def _corpus_table(results: Results) -> Table:
    rows = [
        [
            domain.name,
            f"{formatting.bytes_text(domain.train_bytes)} in {domain.train_files:,} files",
            f"{formatting.bytes_text(domain.held_out_bytes)} in {domain.held_out_files:,} files",
            f"{domain.epochs:.2f}",
            f"{domain.unigram_bits_per_byte:.3f}",
        ]
        for domain in results.corpus.domains
    ]
    headings = ["Domain", "Training text", "Held-out text", "Times read", "Byte frequencies"]
    return Table(
        f"Corpus {results.corpus.name}; byte frequencies alone in bits per byte of held-out text", headings, rows
    )
