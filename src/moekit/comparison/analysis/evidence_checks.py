"""What strengthens or weakens the evidence for a verdict: seeds, order, failures, spikes, collapsed routing."""

from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import finished, order_by_seed
from moekit.comparison.analysis.verdict_wording import listed, runs_text
from moekit.comparison.results_schema import Results

# So many collapsed layers of a contestant are named one by one.
_NAMED = 2


@dataclass(frozen=True)
class Check:
    """One thing that strengthens (`good`) or weakens the evidence for the verdict."""

    good: bool
    text: str


def evidence_checks(results: Results) -> list[Check]:
    """List what strengthens and what weakens the evidence, in all and by contestant."""
    checks = [_seed_check(results), *_order_check(results), *_unigram_check(results)]
    for contestant in results.contestants:
        name = f"`{contestant.name}`"
        failures = [run for run in contestant.runs if run.status == "failed"]
        if failures:
            reasons = "; ".join(f"seed {run.seed}: {run.failure or 'no reason given'}" for run in failures)
            checks.append(
                Check(False, f"{name}: {len(failures)} of {runs_text(len(contestant.runs))} failed ({reasons}).")
            )
        if spikes := sum(run.loss_spikes for run in contestant.runs):
            times = "once" if spikes == 1 else f"{spikes} times"
            checks.append(Check(False, f"{name}: the loss spiked {times} in {runs_text(len(contestant.runs))}."))
        if collapses := [f"seed {run.seed}, {warning}" for run in contestant.runs for warning in run.warnings]:
            more = f"; {len(collapses) - _NAMED} more" if len(collapses) > _NAMED else ""
            told = "; ".join(collapses[:_NAMED])
            checks.append(Check(False, f"{name}: the routing collapsed in training; {told}{more}."))
        if dead := max((layer.dead_experts for run in finished(contestant) for layer in run.routing), default=0):
            checks.append(Check(False, f"{name}: up to {dead} experts of a layer got no token of the held-out text."))
    if not any(run.status == "failed" or run.loss_spikes for one in results.contestants for run in one.runs):
        checks.append(Check(True, "No run failed, and no run's loss spiked."))
    return checks


def _seed_check(results: Results) -> Check:
    count = len(results.settings.seeds)
    if count == 1:
        return Check(False, "One seed: there is no uncertainty figure, and another seed may turn the order round.")
    if count == 2:
        return Check(False, "Two seeds: brackets hold the two values, not an interval.")
    return Check(True, f"{count} seeds: brackets hold the 95 % t-interval of the mean, paired by seed.")


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
        return [Check(True, f"The order by final bits per byte is the same for {_all(len(orders))}: {same}.")]
    told = "; ".join(
        f"seed {', '.join(map(str, seeds))}: {', '.join(f'`{name}`' for name in order)}"
        for order, seeds in distinct.items()
    )
    return [Check(False, f"The order by final bits per byte changes with the seed ({told}).")]


def _all(seeds: int) -> str:
    return f"each of the {seeds} seeds that all finished"


def _unigram_check(results: Results) -> list[Check]:
    bar = results.corpus.unigram_bits_per_byte
    measured = [one for one in results.contestants if one.bits_per_byte is not None and not one.caveat]
    above = [f"`{one.name}`" for one in measured if one.bits_per_byte is not None and one.bits_per_byte >= bar]
    if above:
        return [Check(False, f"{listed(above)} did not get below byte frequencies alone ({bar:.3f} bits per byte).")]
    if not measured:
        return []
    return [Check(True, f"All that finished are below byte frequencies alone ({bar:.3f} bits per byte).")]
