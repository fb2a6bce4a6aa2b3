"""What strengthens or weakens the evidence for a verdict: seeds, order, failures, spikes, collapsed routing."""

from collections.abc import Mapping

from moekit.comparison.analysis.baseline_comparison import finished, order_by_seed
from moekit.comparison.analysis.verdict_wording import listed, runs_text
from moekit.comparison.results_schema import ContestantResults, CorpusRecord, Results
from moekit.comparison.verdict_schema import AgainstBaseline, Check
from moekit.core.formatting import bytes_text

# So many collapsed layers of a contestant are named one by one.
_NAMED = 2

_MUCH_LEFT_OUT = 0.05
"""The share of a domain's text from which it is news that it was left out."""

_MANY_EPOCHS = 4
"""Muennighoff et al. 2023, arXiv 2305.16264: up to so many epochs are nearly as good as new text."""


def evidence_checks(results: Results) -> list[Check]:
    """List what strengthens and what weakens the evidence, in all and by contestant."""
    checks = [_seed_check(results), *_order_check(results), *_unigram_check(results)]
    checks += [*_left_out_checks(results.corpus), *_epochs_check(results.corpus)]
    for contestant in results.contestants:
        name = f"`{contestant.name}`"
        failures = [run for run in contestant.runs if run.status == "failed"]
        if failures:
            reasons = "; ".join(f"seed {run.seed}: {run.failure or 'no reason given'}" for run in failures)
            checks.append(
                weak("runs_failed", f"{name}: {len(failures)} of {runs_text(len(contestant.runs))} failed ({reasons}).")
            )
        if spikes := sum(run.loss_spikes for run in contestant.runs):
            times = "once" if spikes == 1 else f"{spikes} times"
            checks.append(weak("loss_spiked", f"{name}: the loss spiked {times} in {runs_text(len(contestant.runs))}."))
        if collapses := [f"seed {run.seed}, {warning}" for run in contestant.runs for warning in run.warnings]:
            more = f"; {len(collapses) - _NAMED} more" if len(collapses) > _NAMED else ""
            told = "; ".join(collapses[:_NAMED])
            checks.append(weak("routing_collapsed", f"{name}: the routing collapsed in training; {told}{more}."))
        if dead := max((layer.dead_experts for run in finished(contestant) for layer in run.routing), default=0):
            text = f"{name}: up to {dead} experts of a layer got no token of the held-out text."
            checks.append(weak("dead_experts", text))
    if not any(run.status == "failed" or run.loss_spikes for one in results.contestants for run in one.runs):
        checks.append(good("steady_runs", "No run failed, and no run's loss spiked."))
    return checks


def good(code: str, text: str) -> Check:
    """Say what strengthens the evidence."""
    return Check(code=code, good=True, text=text)


def weak(code: str, text: str) -> Check:
    """Say what weakens the evidence."""
    return Check(code=code, good=False, text=text)


def text_checks(corpus: CorpusRecord, leader: AgainstBaseline | None) -> list[Check]:
    """Say on how much of the held-out text the final figures are, and what other text might make of the difference."""
    measured = sum(sum(domain.measured_bytes) for domain in corpus.domains)
    if not measured:  # results of older versions do not tell
        return []
    share = 100 * measured / sum(domain.held_out_bytes for domain in corpus.domains)
    text = f"The final figures are on {measured:,} bytes, {share:.2g} % of the held-out text"
    spread, difference = (leader.text, leader.difference) if leader else (None, None)
    if spread is None or difference is None or difference.spread == "none":
        return [good("held_out_share", f"{text}.")]
    by_text, by_seed = (spread.high - spread.low) / 2, (difference.high - difference.low) / 2
    text += (
        f"; drawn anew from its {spread.parts} documents and stretches of long ones, the difference moves by "
        f"{by_text:.4f} bits per byte either way, and with the seeds by {by_seed:.4f}."
    )
    return [good("text_noise", text) if by_text <= by_seed else weak("text_noise", text)]


def _seed_check(results: Results) -> Check:
    count = len(results.settings.seeds)
    if count == 1:
        return weak("one_seed", "One seed: there is no uncertainty figure, and another seed may turn the order round.")
    text = (
        f"{'Two' if count == 2 else count} seeds: brackets hold the 95 % interval of the mean, paired by seed. That of "
        "the headline holds each seed against the contestant that the other seeds pick, so that the best of equals "
        "does not seem better; those of the other final bits per byte are for all contestants together (Dunnett)."
    )
    if count == 2:
        return weak("two_seeds", f"{text} Two seeds make wide intervals.")
    return good("seeds", text)


def _order_check(results: Results) -> list[Check]:
    orders = order_by_seed(results)
    ranked = len(next(iter(orders.values()), ()))
    if len(orders) < 2 or ranked < 2:
        return []
    distinct: dict[tuple[str, ...], list[int]] = {}
    for seed, order in orders.items():
        distinct.setdefault(order, []).append(seed)
    if len(distinct) == 1:
        same = ", ".join(f"`{name}`" for name in next(iter(distinct)))
        return [good("same_order", f"The order by final bits per byte is the same for {_all(len(orders))}: {same}.")]
    told = "; ".join(
        f"seed {', '.join(map(str, seeds))}: {', '.join(f'`{name}`' for name in order)}"
        for order, seeds in distinct.items()
    )
    return [weak("order_changes", f"The order by final bits per byte changes with the seed ({told}).")]


def _all(seeds: int) -> str:
    return f"each of the {seeds} seeds that all finished"


def _left_out_checks(corpus: CorpusRecord) -> list[Check]:
    """Say of which domains much text was left out, and why."""
    used = {domain.name: domain.train_bytes + domain.held_out_bytes for domain in corpus.domains}
    checks = []
    for name in dict.fromkeys(one.domain for one in corpus.left_out):
        reasons = [one for one in corpus.left_out if one.domain == name]
        lost = sum(one.bytes for one in reasons)
        share = lost / (lost + used.get(name, 0)) if lost else 0.0
        if share >= _MUCH_LEFT_OUT:
            why = "; ".join(f"{one.texts:,} {one.reason}" for one in reasons if one.bytes)
            text = f"Of the text of `{name}` {100 * share:.0f} % ({bytes_text(lost)}) was left out: {why}."
            checks.append(weak("text_left_out", text))
        checks += [weak("text_repeats", f"The text of `{name}` {one.reason}.") for one in reasons if not one.bytes]
    return checks


def _and_more(domains: int) -> str:
    """Write ` and 3 more domains`, of which only the first are named; nothing where all are."""
    rest = domains - _NAMED
    return f" and {rest} more {'domain' if rest == 1 else 'domains'}" if rest > 0 else ""


def _epochs_check(corpus: CorpusRecord) -> list[Check]:
    """Say which domains were read so often that learning by heart is what is compared."""
    often = [domain for domain in corpus.domains if domain.epochs > _MANY_EPOCHS]
    if not often:
        return []
    told = listed([f"`{domain.name}` {domain.epochs:.1f} times" for domain in often[:_NAMED]])
    more = _and_more(len(often))
    return [
        weak(
            "many_epochs",
            f"The training read {told}{more}: beyond {_MANY_EPOCHS} epochs little more is learned of a text than the "
            "text itself (Muennighoff et al. 2023), and who has more parameters learns it by heart first. Give more "
            "text, or a smaller budget.",
        )
    ]


def _unigram_check(results: Results) -> list[Check]:
    """Say who is not below byte frequencies alone: in some domain, or where these are not told apart, in all."""
    corpus = results.corpus
    bars = {domain.name: domain.unigram_bits_per_byte for domain in corpus.domains}
    measured = [one for one in results.contestants if one.bits_per_byte is not None and not one.caveat]
    bar = corpus.unigram_bits_per_byte
    above = {one.name: where for one in measured if (where := _above(one, bars, bar))}
    if above:
        told = "; ".join(f"`{name}` did not get below byte frequencies alone{where}" for name, where in above.items())
        return [weak("above_byte_frequencies", f"{told}.")]
    if not measured:
        return []
    text = f"All that finished are below byte frequencies alone ({bar:.3f} bits per byte), in every domain."
    return [good("below_byte_frequencies", text)]


def _above(one: ContestantResults, bars: Mapping[str, float], bar: float) -> str:
    """Say where a contestant is not below its bar; empty where it is everywhere."""
    found = one.bits_per_byte_by_domain
    if set(found) != set(bars):
        total = one.bits_per_byte
        return f" ({bar:.3f} bits per byte)" if total is not None and total >= bar else ""
    domains = [name for name, bits in found.items() if bits >= bars[name]]
    if not domains:
        return ""
    more = _and_more(len(domains))
    return f" in {listed([f'`{name}` ({bars[name]:.3f} bits per byte)' for name in domains[:_NAMED]])}{more}"
