"""The tables of the report, as text in cells."""

from dataclasses import asdict, astuple

from moekit.comparison.analysis.baseline_comparison import SHARES, finished
from moekit.comparison.analysis.served_decoding import At
from moekit.comparison.analysis.served_wording import SERVED_HEADINGS, served_table
from moekit.comparison.analysis.summary_table import SUMMARY_HEADINGS, summary_table
from moekit.comparison.analysis.verdict_wording import NONE, reached_text, signed
from moekit.comparison.report.page_frame import Table
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.comparison.verdict_schema import AgainstBaseline, Axis
from moekit.config import HashConfig, ModelConfig, MoEConfig, RouterConfig
from moekit.core import formatting


def summary_of(results: Results) -> Table:
    """Give the summary, a row a contestant."""
    rows = [list(asdict(row).values()) for row in summary_table(results)]
    caption = "Means over the seeds that finished"
    if starred := [one.name for one in results.contestants if one.caveat]:
        caption += f"; *: not comparable with the others, as said above ({', '.join(starred)})"
    return Table(caption, list(asdict(SUMMARY_HEADINGS).values()), rows, highlight=results.baseline)


def budget_table(results: Results, against: dict[str, AgainstBaseline]) -> Table:
    """Say what each contestant needed for the baseline's level, at each share of its run."""
    nouns: tuple[tuple[Axis, str], ...] = (("flops", "FLOPs"), ("seconds", "seconds"))
    rows = [
        [f"{one.name}, {noun}"] + [reached_text(one, reach, axis) for reach in one.reach]
        for one in against.values()
        for axis, noun in nouns
    ]
    headings = ["Contestant", *(f"{100 * share:.0f} %" for share in SHARES)]
    return Table("What it took to reach the baseline's level, over what the baseline took", headings, rows)


def served_table_of(results: Results, at: At) -> Table | None:
    """Say how each contestant decodes as it is served at one of the two sizes; gives None where none was measured."""
    rows = [astuple(row) for row in served_table(results, at) if row.ms_per_token != NONE]
    if not rows:
        return None
    sizes = {one.name: _served_size_text(one, at) for one in results.contestants}
    headings = astuple(SERVED_HEADINGS)
    caption = "One sequence at a time, contestants in turns; ratios with the 95 % interval over the turns"
    return Table(
        caption,
        [headings[0], "Parameters (active)", *headings[1:]],
        [[name, sizes[name], *figures] for name, *figures in rows],
        highlight=results.baseline,
    )


def _served_size_text(one: ContestantResults, at: At) -> str:
    size = one.served_size if at == "grown" else one
    if size is None or size.params_total is None:
        return NONE
    return f"{formatting.count_text(size.params_total)} ({formatting.count_text(size.params_active)})"


def domain_table(results: Results, against: dict[str, AgainstBaseline]) -> Table:
    """Give bits per byte, a row a contestant and a column a domain."""

    def figure(one: ContestantResults, domain: str) -> str:
        value = one.bits_per_byte_by_domain.get(domain)
        if value is None:
            return NONE
        versus = against.get(one.name)
        difference = versus.domains.get(domain) if versus else None
        return f"{value:.3f}" + (f" ({signed(difference.mean)})" if difference else "")

    names = [domain.name for domain in results.corpus.domains]
    rows = [[one.name, *(figure(one, name) for name in names)] for one in results.contestants]
    rows.append(["byte frequencies", *(f"{domain.unigram_bits_per_byte:.3f}" for domain in results.corpus.domains)])
    headings = ["Contestant", *names]
    return Table("Held-out bits per byte (in brackets: less the baseline's, paired by seed)", headings, rows)


def routing_table(results: Results) -> Table:
    """Say what each router did, a row a layer."""
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


def tuning_table(results: Results) -> Table | None:
    """Give what each trial of the search for learning rates ended at, a row a contestant; None without a search."""
    trials = results.settings.trials
    if not trials:
        return None
    factors = sorted({trial.rate_factor for trial in trials})
    ended = {(trial.contestant, trial.rate_factor): trial.bits_per_byte for trial in trials}

    def cell(name: str, factor: float) -> str:
        if (name, factor) not in ended:
            return NONE
        bits = ended[name, factor]
        return "failed" if bits is None else f"{bits:.3f}"

    tried = {trial.contestant for trial in trials}
    rows = [
        [
            one.name,
            NONE if one.learning_rate is None else f"{one.learning_rate:g}",
            *(cell(one.name, factor) for factor in factors),
        ]
        for one in results.contestants
        if one.name in tried
    ]
    tokens = ", ".join(f"{count:,}" for count in sorted({trial.tokens for trial in trials}))
    seconds = formatting.duration_text(results.settings.tuning_seconds)
    caption = f"Bits per byte after {tokens} tokens at multiples of the rule's rate; {len(trials)} trials, {seconds}"
    return Table(caption, ["Contestant", "Learning rate", *(f"×\u00a0{factor:g}" for factor in factors)], rows)


def left_out_table(results: Results) -> Table:
    """List what was given and is in none of the domains."""
    rows = [
        [one.domain, f"{one.texts:,}", formatting.bytes_text(one.bytes).replace(" ", "\u00a0"), one.reason, one.example]
        for one in results.corpus.left_out
    ]
    return Table(
        "Files, rows and passages that were given and are in none of the domains",
        ["Domain", "Texts", "Bytes", "Why", "Such as"],
        rows,
    )


def corpus_table(results: Results) -> Table:
    """Describe the text, a row a domain."""
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
