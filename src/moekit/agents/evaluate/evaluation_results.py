"""What an evaluation found, as data and as a table."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from moekit.agents.evaluate.costs import Unit
from moekit.agents.evaluate.intervals import Estimate
from moekit.agents.evaluate.matching import Match
from moekit.core.formatting import count_text


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberResult(_Record):
    """One member against the strategy.

    samples: of each question, as many as the strategy's cost buys. cost: of a question, mean. accuracy: of the
    majority of its samples. difference: the strategy's accuracy less this one, question by question. win_rate: the
    strategy's share of wins over this member, a tie being half of one. failures: questions without an answer.
    undecided: comparisons of which the judge's words told nothing, counted as ties.
    """

    name: str
    samples: int
    cost: float
    accuracy: Estimate | None = None
    difference: Estimate | None = None
    win_rate: Estimate | None = None
    failures: int = 0
    undecided: int = 0


class AgentsEvaluation(_Record):
    """A strategy against each single member at equal cost. cost: of one of the strategy's answers, mean, in `unit`.

    match, judge: what decided. failures: the strategy's questions without an answer, counted as wrong or lost; reasons:
    why anything failed, each reason once.
    """

    strategy: str
    questions: int
    measure: Literal["accuracy", "win rate"]
    match: Match | None
    judge: str | None
    unit: Unit
    cost: float
    accuracy: Estimate | None
    failures: int
    members: tuple[MemberResult, ...]
    reasons: tuple[str, ...]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Make headings and rows of text, the strategy first."""
        failed = "no answer"
        name = f"{self.strategy} (strategy)"
        cost = self._cost_text(self.cost)
        if self.measure == "accuracy":
            assert self.accuracy is not None
            headings = ("", "samples", f"{self.unit} a question", "accuracy", "strategy's gain", failed)
            first = (name, "", cost, _percent(self.accuracy), "", str(self.failures))
            return headings, [first, *(self._accuracy_row(member) for member in self.members)]
        headings = ("", "samples", f"{self.unit} a question", "strategy wins", "undecided", failed)
        return headings, [
            (name, "", cost, "", "", str(self.failures)),
            *(self._win_rate_row(member) for member in self.members),
        ]

    def _accuracy_row(self, member: MemberResult) -> tuple[str, ...]:
        assert member.accuracy is not None
        assert member.difference is not None
        gain = _percent(member.difference, sign="+")
        return (*self._shared(member), _percent(member.accuracy), gain, str(member.failures))

    def _win_rate_row(self, member: MemberResult) -> tuple[str, ...]:
        assert member.win_rate is not None
        return (*self._shared(member), _percent(member.win_rate), str(member.undecided), str(member.failures))

    def _shared(self, member: MemberResult) -> tuple[str, str, str]:
        return member.name, str(member.samples), self._cost_text(member.cost)

    def _cost_text(self, cost: float) -> str:
        return f"{cost:.3g}" if self.unit == "money" else count_text(cost)


def _percent(estimate: Estimate, sign: str = "") -> str:
    """Say `62.5 % (50.0 to 75.0)`."""
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} % ({low} to {high})"
