"""The calls of one answer: each out of the cache or from its member, in time, counted and traced."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from moekit.agents.calls.answer_cache import Cache, Key, call_key
from moekit.agents.calls.budget_ledger import Ledger, money
from moekit.agents.calls.call_clock import CallClock, Listener
from moekit.agents.calls.retried_call import CallRunner, Job, Seat
from moekit.agents.config.agents_config import AgentsConfig
from moekit.agents.members.member import Embedder, Member, MemberError, Scorer
from moekit.agents.outcome.trace import CallEvent, TraceRecorder
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

T = TypeVar("T")

_PRESUMED_TOKENS = 4096
"""Of an answer without a limit: what is set aside for it, since nobody can tell the most that it may cost."""
_KEPT_LIMIT = 1024
"""An older version asked for so many tokens where nobody said how many; answers that it kept are found."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in an answer a call stands.

    Attributes:
        name: of the member.
        stage: where in the trace it stands.
        samples: which of several answers it is, from the outside in.
        deadline: of the whole call, by the event loop's clock.
        silence_s: the most seconds without a piece of its answer.
    """

    name: str
    stage: str
    samples: tuple[int, ...]
    deadline: float
    silence_s: float


CutOff = Callable[[str, str, str], T]
"""From a member's name, what it said until the deadline, and the seconds that were, to the outcome of its call."""


@dataclass(frozen=True, kw_only=True)
class _Kind(Generic[T]):
    """A kind of call.

    Attributes:
        adapter: reads and writes outcomes as JSON.
        fields: what the trace shows of an outcome.
        cut_off: makes the outcome of a call that the deadline ends; None where a part is worth nothing.
    """

    adapter: TypeAdapter[T]
    fields: Callable[[T], dict[str, str | None]]
    cut_off: CutOff[T] | None = None


def _cut_off(name: str, text: str, seconds: str) -> Reply:
    incomplete = f"{name}: the answer was cut off after {seconds} s, when its time was up."
    return Reply(text=text, usage=Usage(), finish_reason="length", incomplete=incomplete)


_CHAT = _Kind(
    adapter=TypeAdapter(Reply),
    fields=lambda reply: {
        "text": reply.text, "finish_reason": reply.finish_reason, "incomplete": reply.incomplete,
    },
    cut_off=_cut_off,
)  # fmt: skip
_SCORE = _Kind(adapter=TypeAdapter(float), fields=lambda nats: {"text": f"{nats:.4f} nats"})
_EMBED = _Kind(adapter=TypeAdapter(list[list[float]]), fields=lambda found: {"text": f"{len(found)} vectors"})


class MemberCalls:
    """Everything that one answer asks of members goes through here."""

    def __init__(
        self,
        config: AgentsConfig,
        seats: Mapping[str, Seat],
        cache: Cache | None,
        ledger: Ledger,
        trace: TraceRecorder,
    ) -> None:
        self._config, self.seats, self._cache = config, seats, cache
        self._ledger, self.trace = ledger, trace

    async def chat(
        self, place: Place, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None
    ) -> Reply:
        """Answer the messages. Raises MemberError."""
        member = self.seats[place.name].member
        options = _drawn(_filled(options, member.defaults), place.samples)

        async def run(hear: OnText) -> tuple[Reply, Usage]:
            reply = await member.complete(messages, options, hear)
            return reply, reply.usage

        def job() -> Job[Reply]:
            written = most_tokens(options, member)
            most = Usage(
                prompt_tokens=member.bound_tokens(messages),
                completion_tokens=_PRESUMED_TOKENS if written is None else written,
            )
            return Job(most, run)

        def keys() -> list[Key]:
            asked = [options] if options.max_tokens is not None else [options, replace(options, max_tokens=_KEPT_LIMIT)]
            return [call_key("chat", member.identity, messages, each, place.samples) for each in asked]

        return await self._call(place, messages, job, keys, _CHAT, on_text)

    async def score(self, place: Place, messages: Sequence[Message], answer: str) -> float:
        """Compute the nats of the answer after the messages. Raises MemberError."""
        member = self.seats[place.name].member
        if not isinstance(member, Scorer):
            raise MoekitError(f"{place.name} cannot say how probable an answer is; a local model can.")

        def job() -> Job[float]:
            prompt = member.bound_tokens(messages) if messages else 0
            # A token has at least a byte, and there may be one at the start.
            most = Usage(prompt_tokens=prompt + len(answer.encode("utf-8", "replace")) + 1)

            return Job(most, lambda _: member.score(messages, answer))

        said = (*messages, Message(role="assistant", content=answer))

        def keys() -> list[Key]:
            return [call_key("score", member.identity, said, ChatOptions(), ())]

        return await self._call(place, said, job, keys, _SCORE)

    async def embed(self, place: Place, texts: Sequence[str]) -> list[list[float]]:
        """Compute a vector a text. Raises MemberError."""
        member = self.seats[place.name].member
        if not isinstance(member, Embedder):
            raise MoekitError(f"{place.name} makes no vectors.")
        said = tuple(Message(role="user", content=text) for text in texts)

        def job() -> Job[list[list[float]]]:
            most = Usage(prompt_tokens=sum(member.bound_tokens([message]) for message in said))
            return Job(most, lambda _: member.embed(texts))

        def keys() -> list[Key]:
            return [call_key("embed", member.identity, said, ChatOptions(), ())]

        return await self._call(place, said, job, keys, _EMBED)

    async def _call(
        self,
        place: Place,
        messages: Sequence[Message],
        job: Callable[[], Job[T]],
        keys: Callable[[], Sequence[Key]],
        kind: _Kind[T],
        on_text: OnText | None = None,
    ) -> T:
        """Take the outcome from the cache, under any of the keys, or else ask and keep it under the first of them."""
        seat, began = self.seats[place.name], self.trace.now
        asked = keys() if self._cache is not None else [{}]
        runner: CallRunner[T] | None = None
        told: dict[str, object] = {"failure": f"{place.name} was called off before it had answered."}
        try:
            async with self._alone(place, asked[0]):
                found = None
                if self._cache is not None:
                    found = await self._cache.get(place.name, asked[0], kind.adapter, asked[1:])
                if found is None:
                    counted = await asyncio.to_thread(job) if seat.member.counts_slowly else job()
                    clock = CallClock(place.silence_s, place.deadline)
                    runner = self._runner(clock, seat, counted)
                    value, usage = await _in_time(place.name, runner, clock, Listener(clock, on_text), kind.cut_off)
                    if self._cache is not None and not clock.within.expired():
                        self._cache.put(asked[0], value, usage, kind.adapter)
                else:
                    value, usage = found
            told = {"usage": usage, **kind.fields(value)}
        except MemberError as error:
            failed = _after_attempts(error, runner)
            told = {"failure": str(failed)}
            raise failed from None
        finally:
            self._record(place, messages, began, runner, told)
        if runner is None and on_text is not None and isinstance(value, Reply):
            await on_text(value.text)
        return value

    def refuse(self, place: Place, messages: Sequence[Message], error: MemberError) -> None:
        """Trace a call that cannot even be made."""
        self._record(place, messages, self.trace.now, None, {"failure": str(error)})

    @asynccontextmanager
    async def _alone(self, place: Place, asked: Key) -> AsyncIterator[None]:
        """Let only one of equal calls be made at a time; it leaves its outcome in the cache to the others."""
        async with AsyncExitStack() as turn:
            if self._cache is not None:
                began = asyncio.get_running_loop().time()
                try:
                    async with asyncio.timeout_at(place.deadline):
                        await turn.enter_async_context(self._cache.alone(asked))
                except TimeoutError:
                    within = f"within {_seconds(began, place.deadline)} s"
                    text = f"{place.name} did not answer {within}; the same had been asked already, and was waited for."
                    raise MemberError(text, reason="timeout", usage=Usage()) from None
            yield

    def _runner(self, clock: CallClock, seat: Seat, job: Job[T]) -> CallRunner[T]:
        return CallRunner(
            seat,
            job,
            self._ledger,
            retries=self._config.retries,
            # A model in this process computes one call after the other: a second one could never be the first to end.
            hedge_after=self._config.hedge_after if seat.limits is not None else None,
            clock=clock,
        )

    def _record(
        self,
        place: Place,
        messages: Sequence[Message],
        began: float,
        runner: CallRunner[T] | None,
        told: dict[str, object],
    ) -> None:
        price = self.seats[place.name].member.price
        cached = runner is None and "failure" not in told
        spent = runner.spent if runner is not None else Usage()
        event = {
            "stage": place.stage,
            "name": place.name,
            "sample": place.samples[-1],
            "prompt": self.trace.prompt(messages),
            "began": began,
            "ended": self.trace.now,
            "money": float(money(spent, price)) if price is not None else None,
            "cached": cached,
            "attempts": runner.attempts if runner is not None else 0,
        }
        self.trace.add(CallEvent.model_validate(event | {"money": 0.0} | told if cached else event | told))


def most_tokens(options: ChatOptions, member: Member) -> int | None:
    """Find how many tokens an answer may be long; None where nothing limits it."""
    return options.max_tokens if options.max_tokens is not None else member.defaults.max_tokens


def _filled(options: ChatOptions, defaults: ChatOptions) -> ChatOptions:
    """Fill in the member's own options where the options say nothing."""
    return ChatOptions(
        temperature=defaults.temperature if options.temperature is None else options.temperature,
        top_p=defaults.top_p if options.top_p is None else options.top_p,
        max_tokens=defaults.max_tokens if options.max_tokens is None else options.max_tokens,
        stop=options.stop or defaults.stop,
        seed=defaults.seed if options.seed is None else options.seed,
        template_variables={**defaults.template_variables, **options.template_variables},
    )


def _drawn(options: ChatOptions, samples: Sequence[int]) -> ChatOptions:
    """Give every sample a seed of its own: one seed would make them all the same."""
    if options.seed is None or not any(samples):
        return options
    digest = hashlib.sha256(f"{options.seed} {list(samples)}".encode()).digest()
    return replace(options, seed=int.from_bytes(digest[:4], "big") >> 1)


def _seconds(began: float, ended: float) -> str:
    return f"{round(max(0.0, ended - began), 1):g}"


async def _in_time(
    name: str, runner: CallRunner[T], clock: CallClock, listener: Listener, cut_off: CutOff[T] | None
) -> tuple[T, Usage]:
    """Wait for what the runner gives, until the call ends.

    Returns:
        The outcome and its usage; at the deadline, the outcome of what was said until then.

    Raises:
        MemberError: where there is none, which says what took so long.
    """
    began = asyncio.get_running_loop().time()
    try:
        async with clock.within:
            return await runner.run(listener)
    except TimeoutError:
        pass
    if listener.text.strip() and not clock.is_silence and cut_off is not None:
        return cut_off(name, listener.text, _seconds(began, clock.ends)), Usage()
    before = f"; before that: {runner.last}" if runner.last is not None else "."
    if listener.text:
        text = f"{name} fell silent in the middle of its answer, for {_seconds(0, clock.waited_s)} s{before}"
        raise MemberError(text, reason="timeout")
    within = f"within {_seconds(0, clock.waited_s)} s"
    if runner.attempts == 0:
        raise MemberError(f"{name}: the limits of its endpoint left no room {within}{before}", reason="limit")
    raise MemberError(f"{name} did not answer {within}{before}", reason="timeout")


def _after_attempts(error: MemberError, runner: CallRunner[T] | None) -> MemberError:
    """Say in the error how many attempts there were, and why one failed that cannot be paid again."""
    if runner is None:
        return error
    if error.reason == "budget" and runner.last is not None:
        text = f"{str(error).removesuffix('.')}; before that: {runner.last}"
        return MemberError(text, reason=error.reason, usage=error.usage)
    if runner.attempts < 2:
        return error
    text = f"{str(error).removesuffix('.')} ({runner.attempts} attempts)."
    return MemberError(text, reason=error.reason, usage=error.usage)
