"""One answer under way, and how its strategies ask members."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeVar

from moekit.agents.calls.member_calls import MemberCalls, Place, most_tokens
from moekit.agents.config.agents_config import AgentsConfig
from moekit.agents.members.member import Member, MemberError, Reason
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

T = TypeVar("T")

_LEFT_TOKENS = 1024
"""Of a context, or half of a short one: what is left for an answer that has no limit."""

GRACE_S = 0.05
"""What is told of its deadline ends by itself; so long after it, whatever does not is left behind."""


@dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    """What a strategy is asked for.

    Attributes:
        messages: the conversation, which ends with what is to be answered.
        options: how the answer is sampled.
        stage: where in the trace the asking stands; a strategy adds the names of its own stages with `in_stage`.
        on_text: gets the answer's text as it is made; None where nobody waits for pieces.
    """

    messages: Sequence[Message]
    options: ChatOptions = field(default_factory=ChatOptions)
    stage: str = ""
    on_text: OnText | None = None

    def in_stage(self, name: str) -> Self:
        """Make the same request at a stage of the strategy that was asked."""
        return replace(self, stage=f"{self.stage}{name}")

    def as_draft(self) -> Self:
        """Make the request for what the user does not get to see: stop sequences end the answer, not its drafts."""
        return replace(self, options=replace(self.options, stop=()), on_text=None)


@dataclass(frozen=True)
class Call:
    """One question to a member or a strategy. sample: which of several answers to the same question.

    refused: why it cannot even be made; it counts as one that failed.
    """

    name: str
    messages: Sequence[Message]
    options: ChatOptions = field(default_factory=ChatOptions)
    sample: int = 0
    refused: MemberError | None = None


@dataclass(frozen=True)
class Layer:
    """What calls side by side gave, in their order, None where one failed; `failures` says why, a sentence each."""

    replies: tuple[Reply | None, ...]
    failures: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Of those that answered, in order."""
        return tuple(reply.text for reply in self.replies if reply is not None)


class QuorumFailed(MoekitError):
    """Too few of a layer answered. failures: why, a sentence each; the text has them all.

    causes: the error of each, None where there is none.
    """

    def __init__(self, text: str, failures: tuple[str, ...], *, causes: Sequence[MoekitError | None] = ()) -> None:
        super().__init__(text)
        self.failures, self.causes = failures, tuple(causes)


def failed_because(error: MoekitError | None, reason: Reason) -> bool:
    """Tell whether there is no answer for this reason alone, of the member or of all of a layer that failed."""
    if isinstance(error, QuorumFailed):
        return bool(error.causes) and all(failed_because(cause, reason) for cause in error.causes)
    return isinstance(error, MemberError) and error.reason == reason


@dataclass(frozen=True)
class _Failure:
    text: str
    cause: MoekitError | None = None


class Session:
    """What strategies ask members through: all of it is counted, bounded, cached and traced.

    deadline: of everything in it, by the event loop's clock. samples: which sample of each strategy around this one.
    """

    def __init__(
        self,
        config: AgentsConfig,
        calls: MemberCalls,
        strategies: Mapping[str, "Strategy"],
        deadline: float,
        samples: tuple[int, ...] = (),
    ) -> None:
        self._config, self._calls, self._strategies = config, calls, strategies
        self._deadline, self._samples = deadline, samples

    async def ask(
        self,
        name: str,
        messages: Sequence[Message],
        options: ChatOptions,
        *,
        stage: str,
        sample: int = 0,
        on_text: OnText | None = None,
    ) -> Reply:
        """Ask a member or, if `name` is one's, a strategy; the answer comes by the earlier of all deadlines.

        stage: where in the strategy, for the trace. Raises MemberError, QuorumFailed.
        """
        if name not in self._strategies:
            return await self._calls.chat(self._place(name, stage, sample), tuple(messages), options, on_text)
        # Samples of a strategy differ in all that they ask.
        samples = (*self._samples, sample)
        inner = Session(self._config, self._calls, self._strategies, self._deadline, samples)
        request = AnswerRequest(messages=messages, options=options, stage=f"{stage}: {name}: ", on_text=on_text)
        return await self._strategies[name].answer(request, inner)

    async def layer(self, calls: Sequence[Call], *, stage: str, quorum: int, stages_left: int = 0) -> Layer:
        """Make all calls side by side, until the layer's deadline; raise QuorumFailed where fewer than `quorum` answer.

        It does not wait on where too few can answer. stages_left: how many steps of the strategy follow. They get their
        share of what time there is left: the layer ends after 1 / (1 + stages_left) of it at the latest, so that
        hanging members cannot eat up the aggregator's time.
        """
        inner = Session(self._config, self._calls, self._strategies, self._end_of_layer(stages_left), self._samples)
        tasks = [asyncio.create_task(inner._outcome(call, stage)) for call in calls]
        try:
            await _until(tasks, quorum, inner._deadline + GRACE_S)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=GRACE_S)
        outcomes = [_outcome_of(task, call) for task, call in zip(tasks, calls, strict=True)]
        replies = tuple(outcome if isinstance(outcome, Reply) else None for outcome in outcomes)
        failed = [outcome for outcome in outcomes if isinstance(outcome, _Failure)]
        failures = tuple(failure.text for failure in failed)
        if len(calls) - len(failures) < quorum:
            raise QuorumFailed(
                f"In {stage}, {len(calls) - len(failures)} of {len(calls)} answered and {quorum} had to: "
                + " ".join(failures),
                failures,
                causes=[failure.cause for failure in failed],
            )
        return Layer(replies, failures)

    async def score(self, name: str, messages: Sequence[Message], answer: str, *, stage: str) -> float:
        """Compute the log probability in nats that a local member gives the answer. Raises MemberError."""
        return await self._calls.score(self._place(name, stage), tuple(messages), answer)

    async def embed(self, name: str, texts: Sequence[str], *, stage: str) -> list[list[float]]:
        """Compute a vector for each text by a member that makes them. Raises MemberError."""
        return await self._calls.embed(self._place(name, stage), texts)

    def room(self, name: str, options: ChatOptions) -> int | None:
        """Find the most prompt tokens, as estimated, that leave space for the answer; of a strategy, for all members.

        None: nobody knows. Raises MemberError where the answer alone may fill a member's context; members of a strategy
        to which that happens are left out here, since they will say so when it asks them.
        """
        rooms = []
        for member in self._members_of(name):
            if member.context is None:
                continue
            most = most_tokens(options, member)
            if most is None:
                rooms.append(member.context - min(_LEFT_TOKENS, member.context // 2))
            elif most < member.context:
                rooms.append(member.context - most)
            elif member.name == name:
                raise MemberError(
                    f"{name}: an answer of up to {most:,} tokens leaves no room for a prompt in its context of "
                    f"{member.context:,}.",
                    reason="context",
                    usage=Usage(),
                )
        return min(rooms, default=None)

    def estimated_tokens(self, name: str, messages: Sequence[Message]) -> int:
        """Estimate the prompt's tokens, rather too many; of a strategy: for all its members that can count them.

        Raises MemberError where a member cannot.
        """
        counts = []
        for member in self._members_of(name):
            try:
                counts.append(member.estimated_tokens(messages))
            except MemberError:
                if member.name == name:
                    raise
        return max(counts, default=0)

    async def counting(self, name: str, work: Callable[[], T]) -> T:
        """Wait for what `work` gives, which counts tokens for `name`: in a thread where that could hold others up."""
        if any(member.counts_slowly for member in self._members_of(name)):
            return await asyncio.to_thread(work)
        return work()

    def refuse(self, name: str, messages: Sequence[Message], error: MemberError, *, stage: str) -> None:
        """Trace that a member could not even be asked."""
        self._calls.refuse(self._place(name, stage), messages, error)

    def sets_temperature(self, name: str) -> bool:
        """Tell whether a strategy may choose a temperature; not where a member's is null: the server chooses."""
        return all(member.defaults.temperature is not None for member in self._members_of(name))

    def note(self, stage: str, text: str) -> None:
        """Add something to the trace besides calls, one sentence: what was cut to fit, who won."""
        self._calls.trace.note(stage, text)

    def _members_of(self, name: str) -> list[Member]:
        seats = self._calls.seats
        # An ensemble is a strategy that has a seat of its own.
        names = [name] if name in seats else sorted(self._config.members_of(name))
        return [seats[each].member for each in names]

    def _place(self, name: str, stage: str, sample: int = 0) -> Place:
        return Place(
            name=name,
            stage=stage,
            samples=(*self._samples, sample),
            deadline=self._deadline,
            silence_s=self._config.deadlines.call,
        )

    def _end_of_layer(self, stages_left: int) -> float:
        now = asyncio.get_running_loop().time()
        share = (self._deadline - now) / (1 + stages_left)
        return now + min(share, self._config.deadlines.layer)

    async def _outcome(self, call: Call, stage: str) -> Reply | _Failure:
        """Wait for the reply, or for why there is none."""
        try:
            if call.refused is not None:
                raise call.refused
            return await self.ask(call.name, call.messages, call.options, stage=stage, sample=call.sample)
        except MemberError as error:
            return _Failure(str(error), error)
        except MoekitError as error:
            return _Failure(f"{call.name}: {error}", error)


async def _until(tasks: Sequence[asyncio.Task[Reply | _Failure]], quorum: int, deadline: float) -> None:
    """Wait until all have ended, or the deadline, or until too few can still answer."""
    pending = set(tasks)
    while pending:
        timeout = deadline - asyncio.get_running_loop().time()
        _, pending = await asyncio.wait(pending, timeout=max(0.0, timeout), return_when=asyncio.FIRST_COMPLETED)
        failed = sum(task.done() and not isinstance(task.result(), Reply) for task in tasks)
        if timeout <= 0 or len(tasks) - failed < quorum:
            return


def _outcome_of(task: asyncio.Task[Reply | _Failure], call: Call) -> Reply | _Failure:
    if task.done() and not task.cancelled():
        return task.result()
    return _Failure(f"{call.name} was called off before it had answered.")


class Strategy(Protocol):
    """A way of answering. `strategies.build_strategy(name, config)` makes one from its configuration.

    An `ensemble` is none: the engine makes it a member, from the local members that it names.
    """

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Answer the request by asking members through the session.

        Raises:
            MemberError: where a member without which there is no answer failed.
            QuorumFailed: where too few members of a layer answered.
        """
        ...
