"""What the results say, in words: the answer to *dense or mixture of experts?*, with its numbers and their uncertainty.

Pure functions of `Results`. Contestants' names stand between backticks in every sentence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import (
    REFERENCES,
    AgainstBaseline,
    Kind,
    Reach,
    compare,
    find,
    finished,
    kind_of,
    order_by_seed,
)
from moekit.comparison.analysis.learning_curves import Axis, Estimate
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.core import formatting

NONE = "–"
_LABELS: dict[Kind, str] = {
    "dense": "Dense",
    "moe": "Mixture of experts",
    "hybrid": "Hybrid of dense and experts",
    "lstm": "The LSTM",
    "ngram": "Counting n-grams",
}
# So many collapsed layers of a contestant are named one by one.
_NAMED = 2
_REACH_NOUNS: tuple[tuple[Axis, str], ...] = (("flops", "the FLOPs"), ("seconds", "the seconds"))


@dataclass(frozen=True)
class Check:
    """One thing that strengthens (`good`) or weakens the evidence for the verdict."""

    good: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer in words.

    answer, because: the headline in two parts. sentences: by contestant, for each that could be held against the
    baseline, and for each that has a caveat and therefore is not. routers: by contestant with routers, whether its
    experts divide the text by domain. leader: the contestant that the headline speaks of.
    """

    answer: str
    because: str
    sentences: dict[str, str]
    checks: tuple[Check, ...]
    routers: dict[str, str]
    against: dict[str, AgainstBaseline]
    leader: str | None

    @property
    def headline(self) -> str:
        """One sentence that answers: dense or mixture of experts?"""
        return f"{self.answer}: {self.because}"


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the summary table, as people read it; `NONE` where there is no figure."""

    name: str
    params_total: str
    params_active: str
    bits_per_byte: str
    tokens_per_second: str
    peak_memory: str
    ms_per_token: str
    reached_flops: str
    reached_seconds: str


SUMMARY_HEADINGS = SummaryRow(
    name="Contestant",
    params_total="Parameters",
    params_active="Active",
    bits_per_byte="Bits per byte",
    tokens_per_second="Training tokens/s",
    peak_memory="Peak memory",
    ms_per_token="ms per token (p95)",
    reached_flops="FLOPs to baseline's level",
    reached_seconds="Seconds to baseline's level",
)


def judge(results: Results) -> Verdict:
    """The whole verdict; works on whatever the schema allows, down to no finished run at all."""
    baseline = find(results, results.baseline)
    others = [contestant for contestant in results.contestants if contestant.name != results.baseline]
    against = {}
    if baseline is not None and baseline.caveat is None:
        against = {one.name: compare(one, baseline) for one in others if one.caveat is None}
    leader = _leader(results, against)
    answer, because = _headline(results, leader)
    sentences = {name: _about(results.baseline, one) for name, one in against.items() if one.difference}
    return Verdict(
        answer=answer,
        because=because,
        sentences=sentences | {one.name: caveat_text(one) for one in results.contestants if one.caveat},
        checks=tuple(_checks(results)),
        routers={one.name: text for one in results.contestants if (text := _specialisation(one))},
        against=against,
        leader=leader.name if leader else None,
    )


def summary_table(results: Results) -> list[SummaryRow]:
    """A row a contestant, in the order of the results; `SUMMARY_HEADINGS` names the columns."""
    baseline = find(results, results.baseline)
    return [_summary_row(contestant, baseline) for contestant in results.contestants]


def ratio_text(estimate: Estimate | None, digits: int = 2) -> str:
    """`0.47 (0.41–0.53)`; the mean alone for one seed."""
    if estimate is None:
        return NONE
    if estimate.spread == "none":
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def reached_text(one: AgainstBaseline, reach: Reach, axis: Axis) -> str:
    """What it took to reach a level, over what the baseline took; `none` where it multiplies nothing."""
    if not reach.seeds:
        return NONE
    if reach.ratios is None:
        return "not reached"
    if axis not in reach.ratios:
        return "none" if one.flops == 0 else NONE
    text = ratio_text(reach.ratios[axis])
    return text if reach.reached == reach.seeds else f"{text}, {reach.reached} of {reach.seeds} seeds"


def caveat_text(contestant: ContestantResults) -> str:
    """Why a contestant that has a caveat is held against nobody; its bits per byte have a star in the summary."""
    return f"`{contestant.name}` (*) is held against nobody: {contestant.caveat}."


def signed(value: float, digits: int = 3) -> str:
    """`+0.012` or `−0.012`, with a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def seeds_text(count: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _summary_row(contestant: ContestantResults, baseline: ContestantResults | None) -> SummaryRow:
    final = Estimate.of([run.bits_per_byte for run in finished(contestant) if run.bits_per_byte is not None])
    median, p95 = contestant.decode_ms_per_token_median, contestant.decode_ms_per_token_p95
    return SummaryRow(
        name=contestant.name,
        params_total=_or_none(contestant.params_total, formatting.count_text),
        params_active=formatting.count_text(contestant.params_active),
        bits_per_byte=_plus_minus(final) + ("*" if final and contestant.caveat else ""),
        tokens_per_second=_or_none(contestant.train_tokens_per_second, formatting.count_text),
        peak_memory=_or_none(contestant.peak_memory_bytes, formatting.bytes_text),
        ms_per_token=NONE if median is None or p95 is None else f"{median:.2f} ({p95:.2f})",
        reached_flops=_reached(contestant, baseline, "flops"),
        reached_seconds=_reached(contestant, baseline, "seconds"),
    )


def _plus_minus(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    if estimate.spread == "none":
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _or_none(value: float | None, text: Callable[[float], str]) -> str:
    return NONE if value is None else text(value)


def _reached(contestant: ContestantResults, baseline: ContestantResults | None, axis: Axis) -> str:
    if baseline is None or not finished(baseline) or not finished(contestant):
        return NONE
    if baseline.caveat or contestant.caveat:
        return NONE
    if contestant.name == baseline.name:
        return "1 (baseline)"
    against = compare(contestant, baseline)
    return reached_text(against, against.final, axis)


def _leader(results: Results, against: dict[str, AgainstBaseline]) -> AgainstBaseline | None:
    """The best contestant of the other kind than the baseline, or the best of all where there is no other kind.

    References answer no question, so that none of them leads.
    """
    baseline = find(results, results.baseline)
    if baseline is None:
        return None
    own = kind_of(baseline.config)
    able = [one for one in against.values() if one.difference and one.kind not in REFERENCES]
    rivals = [one for one in able if own not in REFERENCES and (one.kind == "dense") != (own == "dense")] or able
    return min(rivals, key=lambda one: one.difference.mean if one.difference else 0.0, default=None)


def _headline(results: Results, leader: AgainstBaseline | None) -> tuple[str, str]:
    baseline = find(results, results.baseline)
    if not any(finished(contestant) for contestant in results.contestants):
        return "No answer", "no training run came to its end."
    if baseline is None or not finished(baseline):
        return "No answer", f"the baseline `{results.baseline}` has no finished run to hold the others against."
    if baseline.caveat:
        return "No answer", f"nobody can be held against the baseline `{baseline.name}`: {baseline.caveat}."
    if all(one.caveat for one in results.contestants if one is not baseline):
        return "No answer", f"`{baseline.name}` had nothing to be compared with."
    if all(kind_of(one.config) in REFERENCES for one in results.contestants if one is not baseline and not one.caveat):
        return "No answer", f"beside `{baseline.name}` there are references alone, which are held against it below."
    if leader is None or leader.difference is None:
        return "No answer", f"no other contestant finished a seed that `{baseline.name}` finished."
    win, lose = f"`{leader.name}`", f"`{baseline.name}`"
    if leader.kind != kind_of(baseline.config):
        win, lose = _LABELS[leader.kind], _LABELS[kind_of(baseline.config)]
    difference = leader.difference
    gap = f"`{leader.name}` ended {_gap(difference)} `{baseline.name}`{_interval(difference)}"
    if difference.spread != "none" and difference.side(0.0) == 0:
        return "No difference was shown", f"{gap}, which is within the noise between seeds{_price(leader)}."
    answer = lose if difference.mean > 0 else _where_it_wins(leader, win, lose)
    few = {1: ", as far as one seed can tell", 2: ", as far as two seeds can tell"}.get(difference.seeds, "")
    return f"{answer}{few}", f"{gap}{_price(leader)}."


def _where_it_wins(leader: AgainstBaseline, win: str, lose: str) -> str:
    """Better at the end of the run; cheaper on the way there too, in FLOPs and in seconds?"""
    if leader.final.ratios is None or leader.final.reached < leader.final.seeds:
        return win
    loser = lose if lose.startswith("`") else lose.lower()
    if "flops" not in leader.final.ratios:
        return win if leader.final.ratios["seconds"].side(1.0) < 0 else f"{win} for each token"
    match leader.final.ratios["flops"].side(1.0), leader.final.ratios["seconds"].side(1.0):
        case -1, -1:
            return win
        case -1, 1:
            return f"{win} for each FLOP, {loser} for each second on this machine"
        case -1, 0:
            return f"{win} for each FLOP, no difference shown for each second"
        case _:
            return f"{win} for each token"


def _price(leader: AgainstBaseline) -> str:
    """What the leader's result cost: to the baseline's level where it got there, else for the whole run."""
    final = leader.final
    memory = f" with {_times(leader.memory.mean, 'the training memory')}" if leader.memory else ""
    if final.ratios is not None and final.reached == final.seeds:
        needed = _listed([_times(final.ratios[axis].mean, noun) for axis, noun in _REACH_NOUNS if axis in final.ratios])
        return f"; for the baseline's final level it needed {needed}{',' if memory else ''}{memory}"
    return f"; its runs took {_times(leader.seconds.mean, 'the seconds')}{memory}" if leader.seconds else ""


def _about(baseline: str, one: AgainstBaseline) -> str:
    """Two to five sentences about one contestant; `one.difference` is there."""
    parts = [_reach_sentence(baseline, one)]
    if one.difference is not None:
        unsure = one.difference.spread != "none" and one.difference.side(0.0) == 0
        noise = ", which is within the noise between seeds" if unsure else ""
        parts.append(f"It ended {_gap(one.difference)} `{baseline}`{_interval(one.difference)}{noise}.")
    costs = []
    if one.flops == 0:
        costs.append("no FLOPs, for it multiplies nothing")
    elif one.flops is not None and abs(one.flops - 1) > 0.05:  # else they match in what they compute, as planned
        costs.append(_times(one.flops, "the training FLOPs a token"))
    if one.memory:
        costs.append(_times(one.memory.mean, "the memory in training"))
    if one.decode is not None:
        costs.append(_times(one.decode, "the time for a decoded token"))
    if one.weights is not None:
        costs.append(_times(one.weights, "the bytes as served"))
    if costs:
        parts.append(f"It takes {_listed(costs)}.")
    if one.kind in REFERENCES:
        parts.append("It stands there for reference: neither dense nor a mixture of experts.")
    return " ".join(parts)


def _reach_sentence(baseline: str, one: AgainstBaseline) -> str:
    name, base, final, inverse = f"`{one.name}`", f"`{baseline}`", one.final, one.inverse
    if final.ratios is not None:
        where = "" if final.reached == final.seeds else f" in {final.reached} of {seeds_text(final.seeds)}, there"
        return f"{name} reached {base}'s final level{where} with {_needed(final.ratios)} that {base} needed."
    seeds = "its one seed" if final.seeds == 1 else f"any of {seeds_text(final.seeds)}"
    missed = f"{name} did not reach {base}'s final level in {seeds}"
    if inverse.ratios is None:
        return f"{missed}."
    where = "" if inverse.reached == inverse.seeds else f" in {inverse.reached} of {seeds_text(inverse.seeds)}"
    return (
        f"{missed}; {base} reached the final level of {name}{where} with {_needed(inverse.ratios)} that {name} needed."
    )


def _needed(ratios: dict[Axis, Estimate]) -> str:
    return _listed(
        [f"{_times(ratios[axis].mean, noun)}{_bracket(ratios[axis])}" for axis, noun in _REACH_NOUNS if axis in ratios]
    )


def _checks(results: Results) -> list[Check]:
    checks = [_seed_check(results), *_order_check(results), *_unigram_check(results)]
    for contestant in results.contestants:
        name = f"`{contestant.name}`"
        failures = [run for run in contestant.runs if run.status == "failed"]
        if failures:
            reasons = "; ".join(f"seed {run.seed}: {run.failure or 'no reason given'}" for run in failures)
            checks.append(Check(False, f"{name}: {len(failures)} of {_runs(len(contestant.runs))} failed ({reasons})."))
        if spikes := sum(run.loss_spikes for run in contestant.runs):
            times = "once" if spikes == 1 else f"{spikes} times"
            checks.append(Check(False, f"{name}: the loss spiked {times} in {_runs(len(contestant.runs))}."))
        if collapses := [f"seed {run.seed}, {warning}" for run in contestant.runs for warning in run.warnings]:
            more = f"; {len(collapses) - _NAMED} more" if len(collapses) > _NAMED else ""
            told = "; ".join(collapses[:_NAMED])
            checks.append(Check(False, f"{name}: the routing collapsed in training; {told}{more}."))
        if dead := max((layer.dead_experts for run in finished(contestant) for layer in run.routing), default=0):
            checks.append(Check(False, f"{name}: up to {dead} experts of a layer got no token of the held-out text."))
    if not any(run.status == "failed" or run.loss_spikes for one in results.contestants for run in one.runs):
        checks.append(Check(True, "No run failed, and no run's loss spiked."))
    return checks


def _specialisation(contestant: ContestantResults) -> str | None:
    """Whether the experts divide the text by domain; None where no finished run says."""
    tables = [table for run in finished(contestant) for table in run.experts_by_domain]
    if not tables:
        return None
    clear = sum(table.mutual_information_bits > table.shuffled_p95_bits for table in tables)
    found = sum(table.mutual_information_bits for table in tables) / len(tables)
    shuffled = sum(table.shuffled_mean_bits for table in tables) / len(tables)
    return (
        f"In `{contestant.name}` the domain of a text tells {found:.3f} bits about the chosen expert, against "
        f"{shuffled:.3f} with the domains shuffled; that is more than chance (above the shuffled 95 % point) in "
        f"{clear} of {len(tables)} layers and seeds."
    )


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
        return [Check(False, f"{_listed(above)} did not get below byte frequencies alone ({bar:.3f} bits per byte).")]
    if not measured:
        return []
    return [Check(True, f"All that finished are below byte frequencies alone ({bar:.3f} bits per byte).")]


def _gap(difference: Estimate) -> str:
    return f"{abs(difference.mean):.3f} bits per byte {'below' if difference.mean <= 0 else 'above'}"


def _interval(difference: Estimate) -> str:
    """In brackets, with the seeds: sizes where the sign of the difference is settled, signed where it is not."""
    if difference.spread == "none":
        return " (one seed)"
    if difference.side(0.0) == 0:
        span = f"{signed(difference.low)} to {signed(difference.high)}"
    else:
        span = "{:.3f} to {:.3f}".format(*sorted((abs(difference.low), abs(difference.high))))
    what = f"95 % interval {span}, " if difference.spread == "interval" else f"{span} in "
    return f" ({what}{seeds_text(difference.seeds)})"


def _bracket(estimate: Estimate) -> str:
    return "" if estimate.spread == "none" else f" ({estimate.low:.2f}–{estimate.high:.2f})"


def _times(ratio: float, noun: str) -> str:
    return f"{ratio:.2f} {'of' if ratio < 0.995 else 'times'} {noun}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
