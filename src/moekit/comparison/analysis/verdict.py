"""What the results say, in words: the answer to *dense or mixture of experts?*, with its numbers and their uncertainty.

Pure functions of `Results`. Contestants' names stand between backticks in every sentence.
"""

from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import (
    REFERENCES,
    AgainstBaseline,
    Kind,
    find,
    finished,
    hold_against,
    kind_of,
)
from moekit.comparison.analysis.contestant_sentences import (
    REACH_NOUNS,
    caveat_text,
    contestant_sentences,
    specialisation_sentence,
)
from moekit.comparison.analysis.evidence_checks import Check, evidence_checks
from moekit.comparison.analysis.verdict_wording import gap_text, interval_text, listed, times_text
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
    baseline = find(results, results.baseline)
    others = [contestant for contestant in results.contestants if contestant.name != results.baseline]
    against = {}
    if baseline is not None and baseline.caveat is None:
        against = {one.name: hold_against(one, baseline) for one in others if one.caveat is None}
    leader = _leader(results, against)
    answer, because = _headline(results, leader)
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
    """Write the answer and its reason."""
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
        return "No difference was shown", f"{gap}, which is within the noise between seeds{_price(leader)}."
    answer = lose if difference.mean > 0 else _where_it_wins(leader, win, lose)
    few = {1: ", as far as one seed can tell", 2: ", as far as two seeds can tell"}.get(difference.seeds, "")
    return f"{answer}{few}", f"{gap}{_price(leader)}."


def _where_it_wins(leader: AgainstBaseline, win: str, lose: str) -> str:
    """Say where the leader, better at the end of the run, was cheaper on the way there too: in FLOPs, in seconds."""
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
    """Say what the leader's result cost: to the baseline's level where it got there, else for the whole run."""
    final = leader.final
    memory = f" with {times_text(leader.memory.mean, 'the training memory')}" if leader.memory else ""
    if final.ratios is not None and final.reached == final.seeds:
        needed = listed(
            [times_text(final.ratios[axis].mean, noun) for axis, noun in REACH_NOUNS if axis in final.ratios]
        )
        return f"; for the baseline's final level it needed {needed}{',' if memory else ''}{memory}"
    return f"; its runs took {times_text(leader.seconds.mean, 'the seconds')}{memory}" if leader.seconds else ""
