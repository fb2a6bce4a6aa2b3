"""What answers: members, strategies, cache and limits, held for as many answers as come."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from moekit.agents.calls.answer_cache import Cache
from moekit.agents.calls.budget_ledger import Ledger
from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.calls.member_calls import MemberCalls
from moekit.agents.calls.retried_call import Seat
from moekit.agents.config.agents_config import (
    BUDGETED_TOKENS,
    AgentsConfig,
    BudgetConfig,
    EndpointMemberConfig,
    LocalMemberConfig,
    key_of,
)
from moekit.agents.config.strategy_configs import EnsembleConfig, SingleConfig
from moekit.agents.members.member import MemberError
from moekit.agents.outcome.answer import Answer, AnswerFailed, Spent
from moekit.agents.outcome.trace import Trace, TraceRecorder
from moekit.agents.session import GRACE_S, AnswerRequest, Session, Strategy, failed_because
from moekit.agents.strategies import build_strategy
from moekit.agents.strategies.single import Single
from moekit.core.errors import MoekitError, UsageError, did_you_mean
from moekit.core.messages import ChatOptions, Message, OnText, Reply
from moekit.serve.protocol import ChatModel, ChatReply, ConversationRefused, PromptTooLong

if TYPE_CHECKING:
    from moekit.agents.members.endpoint import Endpoint


class Engine:
    """Answers with the members and strategies of a configuration, any number of answers at a time in one event loop.

        async with Engine(read_agents(path)) as engine:
            await engine.check()
            answer = await engine.answer([Message(role="user", content="Why is the sky blue?")])

    Entering loads local models. Raises UsageError where one cannot be, where the strategies cannot be made, or where
    nothing can be written into the cache; where that fails later, a warning is logged, and no answer fails for it.
    """

    def __init__(self, config: AgentsConfig) -> None:
        self.config = config
        self._endpoints: dict[str, Endpoint] = {}
        self._seats: dict[str, Seat] = {}
        self._strategies: dict[str, Strategy] = {}
        self._cache = Cache(config.cache) if config.cache is not None else None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            if self._cache is not None:
                await self._cache.open()
                opening.push_async_callback(self._cache.close)
            self._add_endpoints(opening)
            await self._add_local_members(opening)
            for name, config in self.config.strategies.items():
                if name not in self._seats:
                    self._strategies[name] = build_strategy(name, config)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @property
    def _only_replays(self) -> bool:
        return self.config.cache is not None and self.config.cache.mode == "only"

    @property
    def models(self) -> Mapping[str, ChatModel]:
        """Every strategy and member, as what `moekit.serve` serves."""
        return {name: _Named(self, name) for name in self.config.names}

    async def check(self) -> None:
        """Ask every endpoint whether it is there, all at once; raises UsageError for the first that is not.

        A replay asks nobody.
        """
        if not self._only_replays:
            problems = await asyncio.gather(*(endpoint.problem() for endpoint in self._endpoints.values()))
            for problem in problems:
                if problem is not None:
                    raise UsageError(problem)

    async def answer(
        self,
        messages: Sequence[Message],
        name: str | None = None,
        options: ChatOptions | None = None,
        on_text: OnText | None = None,
    ) -> Answer:
        """Answer by the strategy or member `name`, by default the configuration's, by its deadline.

        on_text: gets the answer's text as it is made. Raises UsageError for an unknown name, an empty conversation or
        one that is no text, else AnswerFailed.
        """
        name = name or self.config.default_name
        if name not in self.config.names:
            raise UsageError(f"There is no strategy or member {name!r}: {did_you_mean(name, self.config.names)}")
        if not messages:
            raise UsageError("There is no message to answer.")
        for message in messages:
            _check_text(message.content)

        strategy = self._strategies.get(name) or Single(SingleConfig(member=name))
        request = AnswerRequest(messages=messages, options=options or ChatOptions(), on_text=on_text)
        return await self._recorded(name, self.config.budget, partial(strategy.answer, request))

    async def run(self, strategy: Strategy, messages: Sequence[Message], *, title: str) -> Answer:
        """Answer by a strategy that the configuration does not have, with its members and without a budget.

        title: of its trace. Raises AnswerFailed.
        """
        return await self._recorded(title, BudgetConfig(), partial(strategy.answer, AnswerRequest(messages=messages)))

    async def _recorded(self, title: str, budget: BudgetConfig, work: Callable[[Session], Awaitable[Reply]]) -> Answer:
        """Wait for what comes of the work, by the deadline of an answer, with what it cost and its trace."""
        loop = asyncio.get_running_loop()
        ledger, trace = Ledger(budget), TraceRecorder(title, loop.time)
        calls = MemberCalls(self.config, self._seats, self._cache, ledger, trace)
        deadline = loop.time() + self.config.deadlines.answer
        try:
            reply = await self._in_time(title, deadline, work(Session(self.config, calls, self._strategies, deadline)))
        except UsageError:
            raise
        except MoekitError as error:
            raise AnswerFailed(error, ledger.spent, trace.finish()) from error
        spent = ledger.spent
        return Answer(
            text=reply.text,
            finish_reason=reply.finish_reason,
            trace=trace.finish(),
            usage=spent.usage,
            unsettled=spent.unsettled,
            cost=spent.cost,
            unsettled_cost=spent.unsettled_cost,
        )

    async def _in_time(self, title: str, deadline: float, work: Awaitable[Reply]) -> Reply:
        """Wait for the work, whose calls end by the deadline; the clock here is for whatever else it may wait for."""
        try:
            async with asyncio.timeout_at(deadline + GRACE_S):
                return await work
        except TimeoutError:
            within = f"{self.config.deadlines.answer:g} s"
        raise MemberError(f"{title} had no answer within {within}.", reason="timeout")

    def _add_endpoints(self, opening: AsyncExitStack) -> None:
        if not self.config.endpoints:
            return
        # The client takes half a second to import.
        from moekit.agents.members.endpoint import Endpoint, EndpointMember

        for name, config in self.config.endpoints.items():
            key = key_of(name, config, os.environ) if not self._only_replays else None
            self._endpoints[name] = Endpoint(name, config, key)
            opening.push_async_callback(self._endpoints[name].close)
        limits = {name: Limits(name, config) for name, config in self.config.endpoints.items()}
        for name, member in self.config.members.items():
            if isinstance(member, EndpointMemberConfig):
                limited = member.model_copy(update={"max_tokens": self.config.most_tokens_of(member)})
                self._seats[name] = Seat(
                    EndpointMember(name, limited, self._endpoints[member.endpoint]), limits[member.endpoint]
                )

    async def _add_local_members(self, opening: AsyncExitStack) -> None:
        configs = {
            name: member for name, member in self.config.members.items() if isinstance(member, LocalMemberConfig)
        }
        if not configs:
            return
        # Without local models, nothing needs torch.
        from moekit.agents.members.load_local import LOCAL_TOKENS, ensemble_member, load_local_members

        most_tokens = BUDGETED_TOKENS if self.config.is_budgeted else LOCAL_TOKENS
        members = await asyncio.to_thread(load_local_members, configs, most_tokens)
        mixtures = {
            name: await asyncio.to_thread(ensemble_member, name, strategy, members)
            for name, strategy in self.config.strategies.items()
            if isinstance(strategy, EnsembleConfig)
        }
        for name, member in {**members, **mixtures}.items():
            self._seats[name] = Seat(member)
            opening.push_async_callback(member.close)


class _Named:
    """One name of an engine, to be served."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name

    async def chat(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> ChatReply:
        try:
            answer = await self._engine.answer(messages, self._name, options, on_text)
        except AnswerFailed as failed:
            if failed_because(failed.cause, "context"):
                raise PromptTooLong(str(failed)) from failed
            if failed_because(failed.cause, "refused"):
                raise ConversationRefused(str(failed)) from failed
            if isinstance(failed.cause, MemberError) and failed.cause.reply is not None:
                # An answer without a word is none for a strategy; a client that asked for one token may want to know.
                reply = replace(failed.cause.reply, usage=failed.spent.usage)
                return ChatReply(reply=reply, extra=_told(failed.spent, failed.trace))
            raise
        reply = Reply(text=answer.text, usage=answer.usage, finish_reason=answer.finish_reason)
        return ChatReply(reply=reply, extra=_told(answer, answer.trace))


def _told(spent: Spent, trace: Trace) -> dict[str, Any]:
    """Make what a response tells beside the answer."""
    return {
        "failures": list(trace.failures),
        "incomplete": list(trace.incomplete),
        "cost": spent.cost,
        "unsettled_tokens": spent.unsettled.total_tokens,
        "seconds": trace.seconds,
    }


def _check_text(content: str) -> None:
    """Raise UsageError where a message holds what is no character: bytes of another encoding end up so."""
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"A message is not UTF-8: what stands at character {error.start} is no character.") from None
