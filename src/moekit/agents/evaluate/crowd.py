"""Asking an engine for many answers: several at a time, failures counted instead of raised."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from moekit.agents.config.agents_config import LocalMemberConfig
from moekit.agents.engine import Engine
from moekit.agents.session import AnswerRequest, Session
from moekit.agents.strategies.drafts import ask_fitted
from moekit.agents.strategies.rank import judge_messages, judge_request
from moekit.core.errors import MoekitError, UsageError
from moekit.core.messages import Reply
from moekit.core.progress import Progress, Task

T = TypeVar("T")

_AT_ONCE = 8


class Crowd:
    """Many answers from one engine. reasons: why answers failed, each reason once, in the order they came."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self.engine, self._progress = engine, progress
        self.reasons: dict[str, None] = {}
        config = engine.config
        # Models in this process compute one after the other, and waiting for them is part of a deadline.
        local = any(isinstance(member, LocalMemberConfig) for member in config.members.values())
        self._at_once = 1 if local else _AT_ONCE
        self._replays = config.cache is not None and config.cache.mode == "only"

    async def answers(self, what: str, asks: Sequence[Callable[[], Awaitable[T]]]) -> list[T | None]:
        """Wait for what each ask gives, in their order; None where it failed. Raises the first error if all failed.

        A replay has to be complete: it raises any error.
        """
        if not asks:
            return []
        found: list[T | None] = [None] * len(asks)
        errors: list[MoekitError] = []
        waiting = iter(enumerate(asks))

        async def work(task: Task) -> None:
            for place, ask in waiting:
                try:
                    found[place] = await ask()
                except UsageError:
                    raise
                except MoekitError as error:
                    if self._replays:
                        raise
                    errors.append(error)
                    self.reasons.setdefault(str(error))
                task.advance(1)

        with Task(self._progress, what, total=len(asks), unit="questions") as task:
            workers = [asyncio.create_task(work(task)) for _ in range(min(self._at_once, len(asks)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if errors and len(errors) == len(asks):
            raise MoekitError(f"{what}: no answer came: {errors[0]}")
        return found


class Sample:
    """One sample of one member."""

    def __init__(self, member: str, number: int) -> None:
        self._member, self._number = member, number

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Ask the member for it. Raises MemberError."""
        return await ask_fitted(session, self._member, request.in_stage("sample"), sample=self._number)


class Comparison:
    """A judge's comparison of two answers, in this order."""

    def __init__(self, judge: str, first: str, second: str) -> None:
        self._judge, self._texts = judge, (first, second)

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Ask the judge. Raises MemberError, QuorumFailed."""
        judging = judge_request(request.in_stage("judging"), session, self._judge)
        messages = await judge_messages(session, self._judge, judging, *self._texts)
        return await session.ask(self._judge, messages, judging.options, stage=judging.stage)
