"""What the results say, in words: the answer to *dense or mixture of experts?*, with its numbers and their uncertainty.

Pure functions of `Results`. Contestants' names stand between backticks in every sentence.
"""

from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import (
    REFERENCES,
    AgainstBaseline,
    Kind,
    Reach,
    find,
    finished,
    hold_all_against,
    kind_of,
)
from moekit.comparison.analysis.contestant_sentences import (
    REACH_NOUNS,
    caveat_text,
    contestant_sentences,
    specialisation_sentence,
)
from moekit.comparison.analysis.evidence_checks import Check, evidence_checks
from moekit.comparison.analysis.learning_curves import Axis
from moekit.comparison.analysis.verdict_wording import gap_text, interval_text, listed, runs_text, times_text
from moekit.comparison.results_schema import Results

_LABELS: dict[Kind, str] = {
    "dense": "Dense",
    "moe": "Mixture of experts",
    "hybrid": "Hybrid of dense and experts",
    "lstm": "The LSTM",
    "ngram": "Counting n-grams",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to *dense or mixture of experts?* in words.

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
        """The answer and its reason, one sentence."""
        return f"{self.answer}: {self.because}"


def judge(results: Results) -> Verdict:
    """Reach the verdict; works on whatever the schema allows, down to no finished run at all."""
    against = hold_all_against(results)
    leader = _leader(results, against)
    answer, because = _headline(results, leader, _better_but_failed(results, against, leader))
    sentences = {name: contestant_sentences(results.baseline, one) for name, one in against.items() if one.difference}
    return Verdict(
        answer=answer,
        because=because,
        sentences=sentences | {one.name: caveat_text(one) for one in results.contestants if one.caveat},
        checks=tuple(evidence_checks(results)),
        routers={one.name: text for one in results.contestants if (text := specialisation_sentence(one))},
        against=against,
        leader=leader.name if leader else None,
    )


def _leader(results: Results, against: dict[str, AgainstBaseline]) -> AgainstBaseline | None:
    """Find the best contestant of the other kind than the baseline, or the best of all where there is no other kind.

    Who failed where others finished does not lead, who is surely better leads before who seems so, and references
    answer no question, so that none of them leads.
    """
    baseline = find(results, results.baseline)
    if baseline is None:
        return None
    own = kind_of(baseline.config)
    able = [one for one in against.values() if one.difference and one.kind not in REFERENCES]
    rivals = [one for one in able if own not in REFERENCES and (one.kind == "dense") != (own == "dense")] or able
    measured = [(one.difference, one) for one in rivals if one.difference]
    most = max((difference.seeds for difference, _ in measured), default=0)
    return min(
        (pair for pair in measured if pair[0].seeds == most),
        key=lambda pair: (pair[0].side(0.0) >= 0, pair[0].mean),
        default=(None, None),
    )[1]


def _better_but_failed(results: Results, against: dict[str, AgainstBaseline], leader: AgainstBaseline | None) -> str:
    """Say who would lead had not so many of its runs failed; empty where there is nobody."""
    if leader is None or leader.difference is None:
        return ""
    told = []
    for contestant in results.contestants:
        one = against.get(contestant.name)
        if one is None or one.difference is None or one.kind in REFERENCES:
            continue
        if one.difference.seeds < leader.difference.seeds and one.difference.mean < leader.difference.mean:
            failed = sum(run.status == "failed" for run in contestant.runs)
            told.append(f"`{one.name}`, of which {failed} of {runs_text(len(contestant.runs))} failed,")
    return f" {listed(told)} {'does' if len(told) == 1 else 'do'} not lead." if told else ""


def _headline(results: Results, leader: AgainstBaseline | None, aside: str) -> tuple[str, str]:
    """Write the answer and its reason, after which `aside` follows."""
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
    gap = f"`{leader.name}` ended {gap_text(difference)} `{baseline.name}`{interval_text(difference)}"
    if difference.spread != "none" and difference.side(0.0) == 0:
        return "No difference was shown", f"{gap}, which is within the noise between seeds{_price(leader)}.{aside}"
    answer = _where_it_wins(leader, win, lose) if difference.mean <= 0 else _where_baseline_wins(leader, win, lose)
    few = {1: ", as far as one seed can tell", 2: ", as far as two seeds can tell"}.get(difference.seeds, "")
    return f"{answer}{few}", f"{gap}{_price(leader)}.{aside}"


def _where_it_wins(leader: AgainstBaseline, win: str, lose: str) -> str:
    """Say where the leader, better at the end of the run, was cheaper on the way there too: in FLOPs, in seconds."""
    seconds = leader.seconds.high if leader.seconds else None
    return _where_cheaper(leader.final, leader.flops, seconds, win, lose)


def _where_baseline_wins(leader: AgainstBaseline, win: str, lose: str) -> str:
    """Say where the baseline, better at the end of the run than the leader `win`, was cheaper on the way there too."""
    seconds = 1 / leader.seconds.low if leader.seconds and leader.seconds.low > 0 else None
    flops = 1 / leader.flops if leader.flops else None
    return _where_cheaper(leader.inverse, flops, seconds, lose, win)


def _where_cheaper(reach: Reach, flops: float | None, seconds: float | None, win: str, lose: str) -> str:
    """Qualify `win`, which was better at the end, by where it is known to be cheaper.

    Args:
        reach: what the better one needed for the other's final level.
        flops: of its whole run, over the other's.
        seconds: the same of seconds, at most.
        win: the better one.
        lose: the other.
    """
    loser = lose if lose.startswith("`") else lose.lower()
    by_flops, by_seconds = _side(reach, "flops", flops), _side(reach, "seconds", seconds)
    if reach.ratios is not None and "flops" not in reach.ratios:  # one of the two multiplies nothing
        return win if by_seconds == -1 else f"{win} for each token"
    match by_flops, by_seconds:
        case -1, -1:
            return win
        case -1, 1:
            return f"{win} for each FLOP, {loser} for each second on this machine"
        case -1, 0:
            return f"{win} for each FLOP, no difference shown for each second"
        case -1, None:
            return f"{win} for each FLOP"
        case _:
            return f"{win} for each token"


def _side(reach: Reach, axis: Axis, whole_run: float | None) -> int | None:
    """Give -1 where the better one was cheaper, 1 where dearer, 0 where neither was shown; None where nothing tells.

    Where some seeds did not reach the level along the curve there is no ratio of all. Whose whole run was no dearer is
    cheaper then, for it was better at its end.
    """
    if reach.ratios is not None and reach.reached == reach.seeds:
        return reach.ratios[axis].side(1.0) if axis in reach.ratios else None
    return -1 if whole_run is not None and whole_run <= 1 else None


def _price(leader: AgainstBaseline) -> str:
    """Say what the leader's result cost: to the baseline's level where it got there, else for the whole run."""
    final = leader.final
    memory = f" with {times_text(leader.memory.mean, 'the training memory')}" if leader.memory else ""
    if final.ratios is not None and final.reached == final.seeds:
        needed = listed(
            [times_text(final.ratios[axis].mean, noun) for axis, noun in REACH_NOUNS if axis in final.ratios]
        )
        return f"; for the baseline's final level it needed {needed}{',' if memory else ''}{memory}"
    return f"; its runs took {times_text(leader.seconds.mean, 'the seconds')}{memory}" if leader.seconds else ""
