"""From results to the verdict as data: who leads, what is known of the difference, and where the winner is ahead."""

from moekit.comparison.analysis.baseline_comparison import (
    REFERENCES,
    final_by_seed,
    find,
    finished,
    hold_all_against,
    kind_of,
)
from moekit.comparison.analysis.best_rival import BestRival, best_rival
from moekit.comparison.analysis.evidence_checks import evidence_checks, text_checks
from moekit.comparison.analysis.ngram_crossing import crossing_checks
from moekit.comparison.analysis.power import power_checks
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.comparison.verdict_schema import (
    AgainstBaseline,
    Axis,
    Check,
    Reach,
    Reason,
    Standing,
    Standings,
    VerdictRecord,
)


def decide(results: Results) -> VerdictRecord:
    """Reach the verdict; works on whatever the schema allows, down to no finished run at all.

    The question is whether the baseline or the best contestant of the other kind (of all, where there is no other kind)
    ends at fewer bits per byte. There is no answer where the interval of that difference holds 0, over seeds or over
    held-out text, nor from one seed, nor for somebody of whom a run failed.
    """
    against = hold_all_against(results)
    baseline = find(results, results.baseline)
    why = _no_answer(results, baseline)
    if baseline is None or why:
        return _undecided(results, against, why or "baseline_unfinished")
    rivals = _rivals(baseline, against)
    if not rivals:
        return _undecided(results, against, "no_common_seed")
    steady = {name for name in rivals if not against[name].failed}
    if not steady:
        return _undecided(results, against, "rivals_failed")
    figures = {one.name: final_by_seed(one) for one in results.contestants}
    best = best_rival(figures[baseline.name], {name: figures[name] for name in rivals if name in steady})
    leader = against[best.name]
    raw = leader.difference
    against[best.name] = leader = leader.model_copy(update={"difference": best.difference})
    side = best.difference.side(0.0)
    if best.difference.spread == "none":
        return _undecided(results, against, "one_seed", best)
    # What the others picked may be worse than the baseline and the best one not: then nothing is known of that one.
    if side == 0 or raw is None or (raw.mean > 0) != (side > 0):
        return _undecided(results, against, "within_seed_noise", best)
    if leader.text is not None and leader.text.low <= 0 <= leader.text.high:
        return _undecided(results, against, "within_text_noise", best)
    if side > 0 and any(run.status == "failed" for run in baseline.runs):
        return _undecided(results, against, "baseline_failed", best)
    winner, loser = (leader.name, baseline.name) if side < 0 else (baseline.name, leader.name)
    return _undecided(results, against, "decided", best).model_copy(
        update={
            "answer": leader.kind if side < 0 else kind_of(baseline.config),
            "winner": winner,
            "loser": loser,
            "standings": _standings(leader, side),
        }
    )


def _undecided(
    results: Results, against: dict[str, AgainstBaseline], reason: Reason, best: BestRival | None = None
) -> VerdictRecord:
    baseline = find(results, results.baseline)
    return VerdictRecord(
        answer="undecided",
        reason=reason,
        baseline=results.baseline,
        baseline_kind=kind_of(baseline.config) if baseline else None,
        caveats={one.name: one.caveat for one in results.contestants if one.caveat},
        leader=best.name if best else None,
        winner=None,
        loser=None,
        candidates=best.candidates if best else 0,
        picks=best.picks if best else {},
        difference=best.difference if best else None,
        standings=None,
        against=list(against.values()),
        checks=[
            *evidence_checks(results),
            *text_checks(results.corpus, against.get(best.name) if best else None),
            *_power_checks(results, against, best),
            *crossing_checks(results),
        ],
    )


def _power_checks(results: Results, against: dict[str, AgainstBaseline], best: BestRival | None) -> list[Check]:
    baseline = find(results, results.baseline)
    if best is None or baseline is None:
        return []
    figures = {one.name: final_by_seed(one) for one in results.contestants if one.name in _rivals(baseline, against)}
    return power_checks(final_by_seed(baseline), figures, best.difference.mean)


def _no_answer(results: Results, baseline: ContestantResults | None) -> Reason | None:
    """Say why nobody can be held against anybody; None where somebody can."""
    others = [one for one in results.contestants if one is not baseline and not one.caveat]
    if not any(finished(one) for one in results.contestants):
        return "nothing_finished"
    if baseline is None or not finished(baseline):
        return "baseline_unfinished"
    if baseline.caveat:
        return "baseline_caveat"
    if not others:
        return "nothing_to_compare"
    return "references_alone" if all(kind_of(one.config) in REFERENCES for one in others) else None


def _rivals(baseline: ContestantResults, against: dict[str, AgainstBaseline]) -> list[str]:
    """Name those who could lead: references answer no question."""
    own = kind_of(baseline.config)
    able = [one for one in against.values() if one.difference and one.kind not in REFERENCES]
    other_kind = [one for one in able if own not in REFERENCES and (one.kind == "dense") != (own == "dense")]
    return [one.name for one in other_kind or able]


def _standings(leader: AgainstBaseline, side: int) -> Standings:
    """Say where the winner, who is ahead at equal tokens, is ahead too: at equal FLOPs, in equal seconds."""
    if side < 0:
        reach, flops = leader.final, leader.flops
        seconds = (leader.seconds.low, leader.seconds.high) if leader.seconds else None
    else:
        reach, flops = leader.inverse, 1 / leader.flops if leader.flops else None
        known = leader.seconds if leader.seconds and leader.seconds.low > 0 else None
        seconds = (1 / known.high, 1 / known.low) if known else None
    ratios = reach.ratios or reach.at_least or {}
    counted = "flops" in ratios or (not ratios and bool(flops))
    return Standings(
        token="winner",
        flop=_standing(reach, "flops", flops) if counted else None,
        second=_standing(reach, "seconds", seconds[1] if seconds else None),
    )


def _standing(reach: Reach, axis: Axis, whole_run: float | None) -> Standing:
    """Say who is ahead on an axis: who reached the other's final level with less.

    Whose whole run was no dearer is ahead too, for it was better at its end. Where some seeds did not reach the level,
    what they spent is a bound that can show the winner dearer, and never cheaper.
    """
    ratios = reach.ratios or reach.at_least or {}
    estimate: Estimate | None = ratios.get(axis)
    side = estimate.side(1.0) if estimate and estimate.spread == "interval" else 0
    if reach.ratios is not None and side < 0:
        return "winner"
    if side > 0:
        return "loser"
    return "winner" if reach.ratios is None and whole_run is not None and whole_run <= 1 else "not shown"
