"""Each contestant held against the baseline, in numbers: paired by seed, over the seeds that both finished.

Uncertainty is what `moekit.comparison.estimates.Estimate` says it is.
"""

import math
from collections.abc import Callable, Sequence

from moekit.comparison.analysis.learning_curves import AXES, reach_ratios
from moekit.comparison.analysis.served_decoding import AT, decode_ratio
from moekit.comparison.analysis.simultaneous import differences
from moekit.comparison.analysis.text_noise import text_spread
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults, Results, Run
from moekit.comparison.spec.model_costs import ContestantConfig
from moekit.comparison.verdict_schema import AgainstBaseline, Kind, Reach
from moekit.config import LSTMConfig, NGramConfig

SHARES = (0.25, 0.5, 0.75, 1.0)
# Held against the baseline like everyone, but no answer to the question: dense, or mixture of experts?
REFERENCES: frozenset[Kind] = frozenset({"lstm", "ngram"})
Pairs = Sequence[tuple[Run, Run]]


def kind_of(config: ContestantConfig) -> Kind:
    """Give `lstm`, `ngram`; of decoders `dense`, `moe`, or `hybrid` where some layers have experts and some do not."""
    if isinstance(config, LSTMConfig | NGramConfig):
        return config.kind
    routed = {layer.kind == "moe" for layer in config.feed_forwards}
    return "hybrid" if len(routed) == 2 else "moe" if True in routed else "dense"


def finished(contestant: ContestantResults) -> list[Run]:
    """Give the runs that came to their end, by seed."""
    return sorted((run for run in contestant.runs if run.status == "done"), key=lambda run: run.seed)


def find(results: Results, name: str) -> ContestantResults | None:
    """Find the contestant of that name; gives None where there is none."""
    return next((contestant for contestant in results.contestants if contestant.name == name), None)


def hold_against(contestant: ContestantResults, baseline: ContestantResults) -> AgainstBaseline:
    """Hold `contestant` against `baseline`."""
    pairs = _pairs(contestant, baseline)
    mine, theirs = contestant.decode_ms_per_token_median, baseline.decode_ms_per_token_median
    trained, grown = (decode_ratio(contestant, baseline, at) for at in AT)
    return AgainstBaseline(
        name=contestant.name,
        kind=kind_of(contestant.config),
        runs=len(contestant.runs),
        failed=sum(run.status == "failed" for run in contestant.runs),
        difference=Estimate.of([a - b for a, b in _both(pairs, lambda run: run.bits_per_byte)]),
        reach=tuple(_reach(pairs, share) for share in SHARES),
        inverse=_reach([(base, run) for run, base in pairs], 1.0),
        memory=_ratio(pairs, lambda run: run.peak_memory_bytes),
        seconds=_ratio(pairs, lambda run: run.seconds),
        speed=_ratio(pairs, lambda run: run.train_tokens_per_second),
        weights=_over(contestant.weight_bytes, baseline.weight_bytes),
        flops=_over(_flops_per_token(contestant), _flops_per_token(baseline)) if contestant.flops_per_token else 0.0,
        decode=trained.ratio if trained else _over(mine, theirs),
        decode_interval=trained.interval if trained else None,
        decode_grown=grown.ratio if grown else None,
        decode_grown_interval=grown.interval if grown else None,
        domains=_by_domain(pairs),
    )


def _pairs(contestant: ContestantResults, baseline: ContestantResults) -> Pairs:
    other = {run.seed: run for run in finished(baseline)}
    return [(run, other[run.seed]) for run in finished(contestant) if run.seed in other]


def hold_all_against(results: Results) -> dict[str, AgainstBaseline]:
    """Hold every contestant against the baseline, those without a caveat, where the baseline has none itself.

    The intervals of final bits per byte are for all of them together; references, which answer no question, have their
    own.
    """
    baseline = find(results, results.baseline)
    if baseline is None or baseline.caveat is not None:
        return {}
    others = [one for one in results.contestants if one is not baseline and one.caveat is None]
    against = {one.name: hold_against(one, baseline) for one in others}
    rivals = {one.name: final_by_seed(one) for one in others if against[one.name].kind not in REFERENCES}
    together = differences(final_by_seed(baseline), rivals)
    measured = {domain.name: domain.measured_bytes for domain in results.corpus.domains}
    return {
        one.name: against[one.name].model_copy(
            update={
                "difference": together.get(one.name, against[one.name].difference),
                "text": text_spread(_pairs(one, baseline), measured),
            }
        )
        for one in others
    }


def final_by_seed(contestant: ContestantResults) -> dict[int, float]:
    """Give the final bits per byte of the runs that came to their end, by seed."""
    return {run.seed: run.bits_per_byte for run in finished(contestant) if run.bits_per_byte is not None}


def order_by_seed(results: Results) -> dict[int, tuple[str, ...]]:
    """Order the contestants from best to worst, for each seed that all contestants with a finished run have finished.

    Those with a caveat have no place in an order.
    """
    figures = {
        contestant.name: final_by_seed(contestant) for contestant in results.contestants if not contestant.caveat
    }
    figures = {name: by_seed for name, by_seed in figures.items() if by_seed}
    if not figures:
        return {}
    common = set.intersection(*(set(by_seed) for by_seed in figures.values()))
    return {seed: tuple(sorted(figures, key=lambda name: figures[name][seed])) for seed in sorted(common)}


def _flops_per_token(contestant: ContestantResults) -> float:
    """Give the FLOPs of a token in training, a mean over its phases where it has some."""
    if not contestant.phases:
        return contestant.flops_per_token
    spent = sum(phase.tokens * phase.flops_per_token for phase in contestant.phases)
    return spent / sum(phase.tokens for phase in contestant.phases)


def _over(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None


def _both(pairs: Pairs, figure: Callable[[Run], float | None]) -> list[tuple[float, float]]:
    found = [(figure(run), figure(base)) for run, base in pairs]
    return [(mine, theirs) for mine, theirs in found if mine is not None and theirs is not None]


def _ratio(pairs: Pairs, figure: Callable[[Run], float | None]) -> Estimate | None:
    return Estimate.of_ratios([mine / theirs for mine, theirs in _both(pairs, figure) if theirs])


def _reach(pairs: Pairs, share: float) -> Reach:
    # The final figures are measured on more text than the curves. Moved to end at them, a curve says of a level what
    # they say of it: who ended below the baseline has reached its level.
    found = [
        one
        for run, base in pairs
        if (one := reach_ratios(run.curve, base.curve, share, _final_over_curve(base) - _final_over_curve(run)))
    ]
    reached = sum(one.reached for one in found)
    by_axis = {axis: Estimate.of_ratios([one.ratios[axis] for one in found if axis in one.ratios]) for axis in AXES}
    ratios = {axis: estimate for axis, estimate in by_axis.items() if estimate} or None
    return Reach(
        share=share,
        ratios=ratios if reached == len(pairs) else None,
        at_least=ratios if 0 < reached < len(pairs) else None,
        reached=reached,
        seeds=len(pairs),
    )


def _final_over_curve(run: Run) -> float:
    """Give the final bits per byte less those of the curve's end."""
    if run.bits_per_byte is None or not run.curve or not math.isfinite(run.curve[-1].bits_per_byte):
        return 0.0
    return run.bits_per_byte - run.curve[-1].bits_per_byte


def _by_domain(pairs: Pairs) -> dict[str, Estimate]:
    names = dict.fromkeys(name for run, _ in pairs for name in run.bits_per_byte_by_domain)
    differences: dict[str, Estimate] = {}
    for name in names:
        estimate = Estimate.of(
            [
                run.bits_per_byte_by_domain[name] - base.bits_per_byte_by_domain[name]
                for run, base in pairs
                if name in run.bits_per_byte_by_domain and name in base.bits_per_byte_by_domain
            ]
        )
        if estimate:
            differences[name] = estimate
    return differences
