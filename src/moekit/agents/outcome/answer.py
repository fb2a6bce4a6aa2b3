"""What comes out of an engine: an answer with all that it took, or an error with the same."""

from dataclasses import dataclass

from moekit.agents.outcome.trace import Trace
from moekit.core.errors import MoekitError
from moekit.core.messages import FinishReason, Usage


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an answer cost now; what came from the cache cost nothing.

    Attributes:
        usage: tokens of all calls, as their servers counted them.
        unsettled: at most so many tokens more, of calls whose count never came.
        cost: `usage` in money; None where a member without a price was asked.
        unsettled_cost: `unsettled` in money; None where a member without a price was asked.
    """

    usage: Usage
    unsettled: Usage
    cost: float | None
    unsettled_cost: float | None


@dataclass(frozen=True, kw_only=True)
class Answer(Spent):
    """An answer.

    Attributes:
        finish_reason: `length` where it was cut off by max_tokens, the context or a deadline, `content_filter` where a
            filter of a server cut it off.
        trace: who said what, when, for how much, and what failed.
    """

    text: str
    finish_reason: FinishReason
    trace: Trace

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed on the way, a sentence each."""
        return self.trace.failures

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Where something is missing of what a member said, this answer or one that it builds on: a sentence each."""
        return self.trace.incomplete


class AnswerFailed(MoekitError):
    """There is no answer; the text says why.

    Attributes:
        cause: the error that ended it.
        spent: what the calls cost that were made.
        trace: who was asked what, and what failed.
    """

    def __init__(self, cause: MoekitError, spent: Spent, trace: Trace) -> None:
        super().__init__(str(cause))
        self.cause, self.spent, self.trace = cause, spent, trace
