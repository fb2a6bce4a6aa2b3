"""Members without a server, and an event loop whose time passes at once, so that a minute takes no time to test."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from moekit.agents.calls.budget_ledger import Ledger
from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.calls.member_calls import MemberCalls
from moekit.agents.calls.retried_call import Seat
from moekit.agents.config.agents_config import AgentsConfig, PriceConfig
from moekit.agents.members.member import MemberError, Reason
from moekit.agents.outcome.trace import TraceRecorder
from moekit.agents.session import AnswerRequest, Call, Session, Strategy
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

T = TypeVar("T")

Complete = Callable[[Sequence[Message], ChatOptions, OnText | None], Awaitable[Reply]]
OPTIONS = ChatOptions()
QUESTION = (Message(role="user", content="Why is the sky blue?"),)
USAGE = Usage(prompt_tokens=7, completion_tokens=5)


class _Skipping(selectors.DefaultSelector):
    """Where nothing is ready, the time for which one would wait is over."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everybody waits for ever"
            self.now += timeout
        return events


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, in time that passes as soon as everybody waits. Threads would be given none."""
    selector = _Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def reply(text: str = "Light scatters.", usage: Usage = USAGE) -> Reply:
    return Reply(text=text, usage=usage, finish_reason="stop")


def after(seconds: float, outcome: Reply | Exception | None = None) -> Complete:
    """Answers, or fails, after a time."""

    async def complete(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
        await asyncio.sleep(seconds)
        if isinstance(outcome, Exception):
            raise outcome
        given = outcome or reply()
        if on_text is not None:
            await on_text(given.text)
        return given

    return complete


def failing(
    reason: Reason = "status",
    *,
    retryable: bool = True,
    retry_after_s: float | None = None,
    usage: Usage | None = None,
) -> Complete:
    error = MemberError(
        "a: told to fail.", reason=reason, retryable=retryable, retry_after_s=retry_after_s, usage=usage
    )
    return after(0.1, error)


class FakeMember:
    """Answers as the functions say, one after the other; the last one goes on. A token is a byte."""

    context: int | None = None
    counts_slowly = False

    def __init__(self, name: str, *completes: Complete, price: PriceConfig | None = None, max_tokens: int = 10) -> None:
        self.name, self.identity, self.price = name, f"fake {name}", price
        self.defaults = ChatOptions(temperature=0.7, max_tokens=max_tokens)
        self._completes = completes or (after(0),)
        self.began: list[float] = []
        self.ended: list[float] = []
        self.options: list[ChatOptions] = []

    def bound_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.encode()) for message in messages)

    def estimated_tokens(self, messages: Sequence[Message]) -> int:
        return self.bound_tokens(messages)

    async def complete(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> Reply:
        complete = self._completes[min(len(self.began), len(self._completes) - 1)]
        self.began.append(now())
        self.options.append(options)
        try:
            return await complete(messages, options, on_text)
        finally:
            self.ended.append(now())

    async def close(self) -> None:
        return


def config_of(names: Sequence[str], **changes: Any) -> AgentsConfig:
    """Members of these names behind an endpoint that nobody asks."""
    members = {name: {"endpoint": "e", "model": name, "price": {"input": 1, "output": 1}} for name in names}
    given = {"endpoints": {"e": {"url": "http://127.0.0.1:9"}}, "members": members, "default": names[0], **changes}
    return AgentsConfig.model_validate(given)


class Answering:
    """A session over members in memory, with its books. Made where the loop runs. local: no endpoint limits them."""

    def __init__(
        self,
        *members: FakeMember,
        strategies: Mapping[str, Strategy] | None = None,
        limits: Limits | None = None,
        local: bool = False,
        **changes: Any,
    ) -> None:
        config = config_of([member.name for member in members], **changes)
        self.ledger, self.trace = Ledger(config.budget), TraceRecorder("test", now)
        limits = None if local else limits or Limits("e", config.endpoints["e"])
        seats = {member.name: Seat(member, limits) for member in members}
        self.calls = MemberCalls(config, seats, None, self.ledger, self.trace)
        self.session = Session(config, self.calls, strategies or {}, now() + config.deadlines.answer)


def calls_of(names: str) -> list[Call]:
    return [Call(name, QUESTION) for name in names]


class Asking:
    """A strategy of the tests: a layer, and then a member with the first answer."""

    def __init__(self, names: str, *, quorum: int, then: str) -> None:
        self.names, self.quorum, self.then = names, quorum, then

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        calls = calls_of(self.names)
        layer = await session.layer(calls, stage=f"{request.stage}layer", quorum=self.quorum, stages_left=1)
        said = Message(role="user", content=layer.texts[0])
        last = request.in_stage("last")
        return await session.ask(self.then, [said], last.options, stage=last.stage, on_text=last.on_text)
