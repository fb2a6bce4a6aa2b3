"""What the verdict says about each contestant, in words."""

from moekit.comparison.analysis.baseline_comparison import REFERENCES, finished
from moekit.comparison.analysis.verdict_wording import (
    bracket_text,
    gap_text,
    interval_text,
    listed,
    seeds_text,
    times_text,
)
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults
from moekit.comparison.verdict_schema import AgainstBaseline, Axis, Interval

REACH_NOUNS: tuple[tuple[Axis, str], ...] = (("flops", "the FLOPs"), ("seconds", "the seconds"))


def contestant_sentences(baseline: str, one: AgainstBaseline) -> str:
    """Write two to five sentences about one contestant against the baseline; `one.difference` is there."""
    parts = [_reach_sentence(baseline, one)]
    if one.difference is not None:
        unsure = one.difference.spread != "none" and one.difference.side(0.0) == 0
        noise = ", which is within the noise between seeds" if unsure else ""
        parts.append(
            f"It ended {gap_text(one.difference)} `{baseline}`{interval_text(one.difference, one.text)}{noise}."
        )
    costs = []
    if one.flops == 0:
        costs.append("no FLOPs, for it multiplies nothing")
    elif one.flops is not None and abs(one.flops - 1) > 0.05:  # else they match in what they compute, as planned
        costs.append(times_text(one.flops, "the training FLOPs a token"))
    if one.memory:
        costs.append(times_text(one.memory.mean, "the memory in training"))
    if one.decode is not None:
        costs.append(times_text(one.decode, "the time for a decoded token") + _bracket(one.decode_interval))
    if one.decode_grown is not None:
        where = f"that time{_bracket(one.decode_grown_interval)} at a size that no cache holds"
        costs.append(times_text(one.decode_grown, where))
    if one.weights is not None:
        costs.append(times_text(one.weights, "the bytes as served"))
    if costs:
        parts.append(f"It takes {listed(costs)}.")
    if one.kind in REFERENCES:
        parts.append("It stands there for reference: neither dense nor a mixture of experts.")
    return " ".join(parts)


def _bracket(interval: Interval | None) -> str:
    """Write ` (1.02–1.11)`; nothing where there is no interval."""
    return "" if interval is None else f" ({interval.low:.2f}–{interval.high:.2f})"


def _reach_sentence(baseline: str, one: AgainstBaseline) -> str:
    name, base, final, inverse = f"`{one.name}`", f"`{baseline}`", one.final, one.inverse
    if final.ratios is not None:
        return f"{name} reached {base}'s final level with {_needed(final.ratios)} that {base} needed."
    if final.at_least is not None:
        where = f"in {final.reached} of {seeds_text(final.seeds)}"
        return (
            f"{name} reached {base}'s final level {where} alone; over all seeds it takes more than "
            f"{_at_least(final.at_least)} that {base} needed."
        )
    seeds = "its one seed" if final.seeds == 1 else f"any of {seeds_text(final.seeds)}"
    missed = f"{name} did not reach {base}'s final level in {seeds}"
    if inverse.ratios is None:
        return f"{missed}."
    return f"{missed}; {base} reached the final level of {name} with {_needed(inverse.ratios)} that {name} needed."


def _needed(ratios: dict[Axis, Estimate]) -> str:
    return listed(
        [
            f"{times_text(ratios[axis].mean, noun)}{bracket_text(ratios[axis])}"
            for axis, noun in REACH_NOUNS
            if axis in ratios
        ]
    )


def _at_least(ratios: dict[Axis, Estimate]) -> str:
    return listed([times_text(ratios[axis].mean, noun) for axis, noun in REACH_NOUNS if axis in ratios])


def caveat_text(name: str, caveat: str) -> str:
    """Say why a contestant with a caveat is held against nobody; its bits per byte have a star in the summary."""
    return f"`{name}` (*) is held against nobody: {caveat}."


def specialisation_sentence(contestant: ContestantResults) -> str | None:
    """Say whether the experts divide the text by domain; gives None where no finished run tells."""
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
