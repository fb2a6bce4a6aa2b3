"""What happened on the way to one answer: who was asked what at which stage, when, for how much, and what failed."""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from moekit.core.messages import FinishReason, Message, Usage


class _Record(BaseModel):
    """Base of all records: immutable, and an unknown key is an error. Times are seconds since the answer began."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CallEvent(_Record):
    """One member asked one thing, retries and hedges included.

    Attributes:
        stage: where in the strategy it stands.
        name: of the member that was asked.
        sample: which of several answers to the same question it is.
        prompt: where its messages stand in `Trace.prompts`.
        began: seconds since the answer began.
        ended: seconds since the answer began.
        text: None where it failed, for the reason in `failure`.
        usage: of the answer, also where it came from the cache.
        incomplete: why something of the text is missing, or may be; None where it is whole.
        money: what was spent now, 0 for a cached answer; None where the member has no price.
        attempts: requests sent, 0 for a cached answer.
    """

    kind: Literal["call"] = "call"
    stage: str
    name: str
    sample: int = 0
    prompt: int
    began: float
    ended: float
    text: str | None = None
    finish_reason: FinishReason | None = None
    incomplete: str | None = None
    usage: Usage = Usage()
    money: float | None = None
    cached: bool = False
    attempts: int = 1
    failure: str | None = None


class NoteEvent(_Record):
    """Something that a strategy did and that the user may want to know: what was cut to fit, which answer won."""

    kind: Literal["note"] = "note"
    stage: str
    at: float
    text: str


Event = Annotated[CallEvent | NoteEvent, Field(discriminator="kind")]


class Trace(_Record):
    """All that happened, in the order in which calls ended and notes were made.

    Attributes:
        name: of the strategy or member that was asked.
        seconds: that the answer took.
        prompts: the different lists of messages that were sent, each once.
    """

    name: str
    seconds: float
    prompts: tuple[tuple[Message, ...], ...]
    events: tuple[Event, ...]

    @property
    def calls(self) -> tuple[CallEvent, ...]:
        """The events that are calls."""
        return tuple(event for event in self.events if isinstance(event, CallEvent))

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed, one sentence each."""
        return tuple(call.failure for call in self.calls if call.failure is not None)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """What is missing of answers, one sentence each."""
        return tuple(call.incomplete for call in self.calls if call.incomplete is not None)


class TraceRecorder:
    """Collects the events of one answer.

    Args:
        name: of the strategy or member that is asked.
        clock: gives seconds since any moment, never going back.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._start = clock()
        self._prompts: dict[tuple[Message, ...], int] = {}
        self._events: list[CallEvent | NoteEvent] = []

    @property
    def now(self) -> float:
        """Seconds since the answer began."""
        return self._clock() - self._start

    def prompt(self, messages: Sequence[Message]) -> int:
        """Give the number of these messages among the prompts, for `CallEvent.prompt`."""
        return self._prompts.setdefault(tuple(messages), len(self._prompts))

    def add(self, event: CallEvent) -> None:
        """Add a call that has ended."""
        self._events.append(event)

    def note(self, stage: str, text: str) -> None:
        """Add something to tell besides calls, one sentence."""
        self._events.append(NoteEvent(stage=stage, at=self.now, text=text))

    def finish(self) -> Trace:
        """Make the trace of everything until now."""
        return Trace(name=self._name, seconds=self.now, prompts=tuple(self._prompts), events=tuple(self._events))
