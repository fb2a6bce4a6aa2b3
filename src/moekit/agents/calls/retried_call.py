"""One call: as many requests as it takes, each within budget and limits. The one place that retries."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from moekit.agents.calls.budget_ledger import Ledger
from moekit.agents.calls.call_clock import CallClock, Listener
from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.calls.hedging import Hedge
from moekit.agents.members.member import Member, MemberError
from moekit.core.messages import OnText, Usage

T = TypeVar("T")

# Without a Retry-After: a random time up to a limit that doubles, so that calls that failed together come back apart.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 20.0


@dataclass(frozen=True)
class Seat:
    """A member, and what its endpoint allows; None for a model in this process."""

    member: Member
    limits: Limits | None = None


@dataclass(frozen=True)
class Job(Generic[T]):
    """What is asked of a member. most: what a request may cost. run: one request; gives its outcome and usage.

    A usage of no tokens: the server told none.
    """

    most: Usage
    run: Callable[[OnText], Awaitable[tuple[T, Usage]]]


class CallRunner(Generic[T]):
    """One job and its requests.

    attempts: requests sent until now. last: why the one before failed. spent: what all cost, as far as is known.
    """

    def __init__(
        self, seat: Seat, job: Job[T], ledger: Ledger, *, retries: int, hedge_after: float | None, clock: CallClock
    ) -> None:
        self._seat, self._job, self._ledger = seat, job, ledger
        self._retries, self._hedge_after, self._clock = retries, hedge_after, clock
        self.attempts = 0
        self.last: MemberError | None = None
        self.spent = Usage()
        self._reworded = 0

    async def run(self, listener: Listener) -> tuple[T, Usage]:
        """Do the job, and tell what it cost; raise MemberError. The caller's clock ends it by cancelling."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, MemberError) and error.retryable),
            stop=self._is_enough,
            wait=_wait_s,
            before_sleep=self._remember,
            reraise=True,
        )
        return await retrying(self._attempt, listener)

    def _is_enough(self, state: RetryCallState) -> bool:
        """Tell whether no attempt is left, or none could begin in time; its reason is then told at once."""
        wakes = asyncio.get_running_loop().time() + state.upcoming_sleep
        return wakes >= self._clock.ends or stop_after_attempt(self._retries + 1 + self._reworded)(state)

    def _remember(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self.last = error if isinstance(error, MemberError) else None

    async def _attempt(self, listener: Listener) -> tuple[T, Usage]:
        """Send a request, or two of them. What has been passed on cannot be taken back, so nothing is retried then."""
        try:
            if self._hedge_after is None:
                return await self._request(listener, lambda: None)
            return await Hedge(self._request, self._hedge_after, listener).run()
        except MemberError as error:
            error.retryable = error.retryable and not listener.has_passed_on
            listener.forget()
            self._reworded += error.reworded
            raise

    async def _request(self, on_text: OnText, sent: Callable[[], None]) -> tuple[T, Usage]:
        member = self._seat.member
        reservation = self._ledger.reserve(member.name, self._job.most, member.price)
        spent: Usage | None = Usage()
        try:
            async with self._slot() as answered:
                spent = None  # from here on, only the server knows
                self.attempts += 1
                sent()
                try:
                    outcome, usage = await self._job.run(on_text)
                    spent = usage if usage.total_tokens else None
                except MemberError as error:
                    spent = error.usage
                    raise
                finally:
                    if spent is not None:
                        answered(spent)
            return outcome, usage
        finally:
            self._ledger.settle(reservation, spent)
            self.spent += spent or Usage()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[Callable[[Usage], None]]:
        if self._seat.limits is None:
            yield lambda _: None
            return
        async with self._seat.limits.slot(self._job.most.total_tokens) as answered:
            yield answered


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, MemberError) and error.retry_after_s is not None:
        return error.retry_after_s
    return wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)(state)
