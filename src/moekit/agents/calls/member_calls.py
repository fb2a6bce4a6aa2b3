"""The calls of one answer: each out of the cache or from its member, in time, counted and traced."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import TypeAdapter

from moekit.agents.calls.answer_cache import Cache, Key, call_key
from moekit.agents.calls.budget_ledger import Ledger, money
from moekit.agents.calls.retried_call import CallRunner, Job, Seat
from moekit.agents.config.agents_config import AgentsConfig
from moekit.agents.members.member import Embedder, Member, MemberError, Scorer
from moekit.agents.outcome.trace import CallEvent, TraceRecorder
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

T = TypeVar("T")

_REPLY, _NATS, _VECTORS = TypeAdapter(Reply), TypeAdapter(float), TypeAdapter(list[list[float]])


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in an answer a call stands. samples: from the outside in. deadline: of the event loop's clock."""

    name: str
    stage: str
    samples: tuple[int, ...]
    deadline: float


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

        async def run(hear: OnText | None) -> tuple[Reply, Usage]:
            reply = await member.complete(messages, options, hear)
            return reply, reply.usage

        def job() -> Job[Reply]:
            most = Usage(prompt_tokens=member.bound_tokens(messages), completion_tokens=most_tokens(options, member))
            return Job(most, run)

        def key() -> Key:
            return call_key("chat", member.identity, messages, options, place.samples)

        return await self._call(place, messages, job, key, _REPLY, _reply_fields, on_text)

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

        def key() -> Key:
            return call_key("score", member.identity, said, ChatOptions(), ())

        return await self._call(place, said, job, key, _NATS, lambda nats: {"text": f"{nats:.4f} nats"})

    async def embed(self, place: Place, texts: Sequence[str]) -> list[list[float]]:
        """Compute a vector a text. Raises MemberError."""
        member = self.seats[place.name].member
        if not isinstance(member, Embedder):
            raise MoekitError(f"{place.name} makes no vectors.")
        said = tuple(Message(role="user", content=text) for text in texts)

        def job() -> Job[list[list[float]]]:
            most = Usage(prompt_tokens=sum(member.bound_tokens([message]) for message in said))
            return Job(most, lambda _: member.embed(texts))

        def key() -> Key:
            return call_key("embed", member.identity, said, ChatOptions(), ())

        return await self._call(place, said, job, key, _VECTORS, lambda found: {"text": f"{len(found)} vectors"})

    async def _call(
        self,
        place: Place,
        messages: Sequence[Message],
        job: Callable[[], Job[T]],
        key: Callable[[], Key],
        of: TypeAdapter[T],
        fields: Callable[[T], dict[str, str]],
        on_text: OnText | None = None,
    ) -> T:
        """Take the outcome from the cache, or else ask and keep it there. fields: what the trace shows of it."""
        seat, began = self.seats[place.name], self.trace.now
        asked = key() if self._cache is not None else {}
        runner: CallRunner[T] | None = None
        told: dict[str, object] = {"failure": f"{place.name} was called off before it had answered."}
        try:
            async with self._alone(place, asked):
                found = await self._cache.get(place.name, asked, of) if self._cache is not None else None
                if found is None:
                    counted = await asyncio.to_thread(job) if seat.member.counts_slowly else job()
                    runner = self._runner(place, seat, counted)
                    value, usage = await _in_time(place, runner, on_text)
                    if self._cache is not None:
                        self._cache.put(asked, value, usage, of)
                else:
                    value, usage = found
            told = {"usage": usage, **fields(value)}
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

    def _runner(self, place: Place, seat: Seat, job: Job[T]) -> CallRunner[T]:
        return CallRunner(
            seat,
            job,
            self._ledger,
            retries=self._config.retries,
            # A model in this process computes one call after the other: a second one could never be the first to end.
            hedge_after=self._config.hedge_after if seat.limits is not None else None,
            deadline=place.deadline,
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


def most_tokens(options: ChatOptions, member: Member) -> int:
    """Find how many tokens an answer may be long."""
    most = options.max_tokens if options.max_tokens is not None else member.defaults.max_tokens
    assert most is not None, "a member's defaults say how long an answer may be"
    return most


def _filled(options: ChatOptions, defaults: ChatOptions) -> ChatOptions:
    """Fill in the member's own options where the options say nothing."""
    return ChatOptions(
        temperature=defaults.temperature if options.temperature is None else options.temperature,
        top_p=defaults.top_p if options.top_p is None else options.top_p,
        max_tokens=defaults.max_tokens if options.max_tokens is None else options.max_tokens,
        stop=options.stop or defaults.stop,
        seed=defaults.seed if options.seed is None else options.seed,
    )


def _drawn(options: ChatOptions, samples: Sequence[int]) -> ChatOptions:
    """Give every sample a seed of its own: one seed would make them all the same."""
    if options.seed is None or not any(samples):
        return options
    digest = hashlib.sha256(f"{options.seed} {list(samples)}".encode()).digest()
    return replace(options, seed=int.from_bytes(digest[:4], "big") >> 1)


def _reply_fields(reply: Reply) -> dict[str, str]:
    return {"text": reply.text, "finish_reason": reply.finish_reason}


def _seconds(began: float, ended: float) -> str:
    return f"{round(max(0.0, ended - began), 1):g}"


async def _in_time(place: Place, runner: CallRunner[T], on_text: OnText | None) -> tuple[T, Usage]:
    """Wait for what the runner gives; raise MemberError at the deadline, which says what took so long."""
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(place.deadline):
            return await runner.run(on_text)
    except TimeoutError:
        within = f"within {_seconds(began, place.deadline)} s"
        before = f"; before that: {runner.last}" if runner.last is not None else "."
    if runner.attempts == 0:
        raise MemberError(f"{place.name}: the limits of its endpoint left no room {within}{before}", reason="limit")
    raise MemberError(f"{place.name} did not answer {within}{before}", reason="timeout")


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
