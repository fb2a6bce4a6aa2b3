"""The verdict in words: the answer to *dense or mixture of experts?*, with its numbers and their uncertainty.

The words are made from the verdict as data alone (`moekit.comparison.verdict_schema`), which `results.json` holds, so
that the two cannot differ. Contestants' names stand between backticks in every sentence.
"""

from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import REFERENCES
from moekit.comparison.analysis.contestant_sentences import (
    REACH_NOUNS,
    caveat_text,
    contestant_sentences,
    specialisation_sentence,
)
from moekit.comparison.analysis.decision import decide
from moekit.comparison.analysis.verdict_wording import (
    bracket_text,
    gap_text,
    interval_text,
    listed,
    runs_text,
    seeds_text,
    times_text,
)
from moekit.comparison.results_schema import Results
from moekit.comparison.verdict_schema import AgainstBaseline, Check, Kind, Standings, VerdictRecord

_LABELS: dict[Kind, str] = {
    "dense": "Dense",
    "moe": "Mixture of experts",
    "hybrid": "Hybrid of dense and experts",
    "lstm": "The LSTM",
    "ngram": "Counting n-grams",
}
_FEW = {2: ", as far as two seeds can tell"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to *dense or mixture of experts?* in words.

    answer, because: the headline in two parts. sentences: by contestant, for each that could be held against the
    baseline, and for each that has a caveat and therefore is not. routers: by contestant with routers, whether its
    experts divide the text by domain. leader: the contestant that the headline speaks of. record: the same as data.
    """

    answer: str
    because: str
    sentences: dict[str, str]
    checks: tuple[Check, ...]
    routers: dict[str, str]
    against: dict[str, AgainstBaseline]
    leader: str | None
    record: VerdictRecord

    @property
    def headline(self) -> str:
        """The answer and its reason, one sentence."""
        return f"{self.answer}: {self.because}"


def judge(results: Results) -> Verdict:
    """Put the verdict of `results` into words; it is reached first where they, from an older version, hold none."""
    record = results.verdict or decide(results)
    against = {one.name: one for one in record.against}
    answer, because = _headline(record, against)
    sentences = {name: contestant_sentences(results.baseline, one) for name, one in against.items() if one.difference}
    return Verdict(
        answer=answer,
        because=because,
        sentences=sentences | {name: caveat_text(name, caveat) for name, caveat in record.caveats.items()},
        checks=tuple(record.checks),
        routers={one.name: text for one in results.contestants if (text := specialisation_sentence(one))},
        against=against,
        leader=record.leader,
        record=record,
    )


def _headline(record: VerdictRecord, against: dict[str, AgainstBaseline]) -> tuple[str, str]:
    """Write the answer and its reason."""
    leader = against[record.leader] if record.leader else None
    if leader is None or record.difference is None:
        return "No answer", _nobody(record)
    base = f"`{record.baseline}`"
    ended = f"{_who(record)} ended {gap_text(record.difference)} {base}{interval_text(record.difference, leader.text)}"
    aside, price = _better_but_failed(record), _price(leader)
    match record.reason:
        case "one_seed":
            return "No answer from one seed", f"{ended}, and nothing tells how far another would be from that.{aside}"
        case "within_seed_noise":
            return (
                "No difference was shown",
                f"{ended}, which is within the noise between seeds{price}.{aside}",
            )
        case "within_text_noise":
            return (
                "No difference was shown",
                f"{ended}, which other held-out text may turn round{price}.{aside}",
            )
        case "baseline_failed":
            return "No answer", f"{ended}, but runs of {base} failed, and what is left of them is no proof.{aside}"
        case _:
            few = _FEW.get(record.difference.seeds, "")
            return f"{_winner(record, against)}{few}", f"{ended}{price}.{aside}"


def _nobody(record: VerdictRecord) -> str:
    """Say why nobody leads."""
    base = f"`{record.baseline}`"
    match record.reason:
        case "nothing_finished":
            return "no training run came to its end."
        case "baseline_unfinished":
            return f"the baseline {base} has no finished run to hold the others against."
        case "baseline_caveat":
            return f"nobody can be held against the baseline {base}: {record.caveats[record.baseline]}."
        case "nothing_to_compare":
            return f"{base} had nothing to be compared with."
        case "references_alone":
            return f"beside {base} there are references alone, which are held against it below."
        case "rivals_failed":
            told = listed([f"`{one.name}`: {_failures(one)}" for one in record.against if one.failed])
            return f"runs of all that could be held against {base} failed ({told}), and what is left is no proof."
        case _:
            return f"no other contestant finished a seed that {base} finished."


def _who(record: VerdictRecord) -> str:
    """Name the leader, and where seeds disagree about who that is, whom they pick."""
    if record.candidates < 2:
        return f"`{record.leader}`"
    picks = sorted(record.picks.items(), key=lambda pick: -pick[1])
    if [name for name, _ in picks] == [record.leader]:
        return f"`{record.leader}`, the best of {record.candidates},"
    told = listed([f"`{name}` in {seeds_text(count)}" for name, count in picks])
    return f"The best of {record.candidates} (each seed against the one that the other seeds pick: {told})"


def _winner(record: VerdictRecord, against: dict[str, AgainstBaseline]) -> str:
    """Name the winner, and where it is ahead."""
    assert record.standings is not None
    assert record.leader is not None
    assert record.answer != "undecided"
    assert record.baseline_kind is not None
    win, lose = f"`{record.winner}`", f"`{record.loser}`"
    theirs = against[record.leader].kind if record.winner == record.baseline else record.baseline_kind
    if record.answer != theirs:
        win, lose = _LABELS[record.answer], _LABELS[theirs].lower()
    return _where_ahead(record.standings, win, lose)


def _where_ahead(standings: Standings, win: str, lose: str) -> str:
    """Say where the winner is ahead; `win` alone where it is everywhere."""
    match standings.flop, standings.second:
        case "winner" | None, "winner":
            return win
        case "winner", "loser":
            return f"{win} for each FLOP, {lose} for each second on this machine"
        case "winner", _:
            return f"{win} for each FLOP, no difference shown for each second"
        case "loser", "loser":
            return f"{win} for each token, {lose} for each FLOP and each second on this machine"
        case "loser", _:
            return f"{win} for each token, {lose} for each FLOP"
        case _, "loser":
            return f"{win} for each token, {lose} for each second on this machine"
        case _:
            return f"{win} for each token"


def _better_but_failed(record: VerdictRecord) -> str:
    """Say who would lead had none of its runs failed; empty where there is nobody."""
    told = [
        f"`{one.name}`, of which {_failures(one)} failed,"
        for one in record.against
        if one.failed and one.kind not in REFERENCES and one.difference and record.difference
        and one.difference.mean < record.difference.mean
    ]  # fmt: skip
    return f" {listed(told)} {'does' if len(told) == 1 else 'do'} not lead." if told else ""


def _failures(one: AgainstBaseline) -> str:
    return f"{one.failed} of {runs_text(one.runs)}"


def _price(leader: AgainstBaseline) -> str:
    """Say what the leader's result cost: to the baseline's level where every seed got there, else for the whole run."""
    final = leader.final
    memory = f" with {times_text(leader.memory.mean, 'the training memory')}" if leader.memory else ""
    if final.ratios is not None:
        needed = listed(
            [
                f"{times_text(final.ratios[axis].mean, noun)}{bracket_text(final.ratios[axis])}"
                for axis, noun in REACH_NOUNS
                if axis in final.ratios
            ]
        )
        return f"; for the baseline's final level it needed {needed}{',' if memory else ''}{memory}"
    return f"; its runs took {times_text(leader.seconds.mean, 'the seconds')}{memory}" if leader.seconds else ""
