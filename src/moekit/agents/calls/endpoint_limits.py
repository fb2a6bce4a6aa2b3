"""What an endpoint allows, kept exactly: requests under way, and requests and tokens in any window of time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from moekit.agents.config.agents_config import EndpointConfig
from moekit.agents.members.member import MemberError
from moekit.core.messages import Usage

# A server counts a request when it arrives, some time after it was sent: before its answer, or, where the answer takes
# longer or never comes, within this time.
_TRANSIT_S = 5.0


@dataclass(eq=False)
class _Slot:
    """A request that counts. tokens: the most that it may use, until it is known how many it did."""

    tokens: int
    arrived_by: float


class Limits:
    """Lets requests to one endpoint through, in the order in which they came, when all limits leave room for them.

    A sliding window: at no time have more requests arrived within the last `window_s` seconds than are allowed. (A
    leaky bucket, which fills up again evenly, lets nearly twice as many through.)
    """

    def __init__(self, name: str, config: EndpointConfig, *, window_s: float = 60.0) -> None:
        self._name, self._config, self._window_s = name, config, window_s
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._recent: list[_Slot] = []
        self._under_way = 0

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[Callable[[Usage], None]]:
        """Wait for a place for one request of at most so many tokens.

        Gives a function that is to be called with the cost when a response came. Raises MemberError where no window
        is ever large enough.
        """
        most = self._config.tokens_per_minute
        if most is not None and tokens > most:
            raise MemberError(
                f"A request of up to {tokens:,} tokens is more than the {most:,} a minute of endpoint {self._name}.",
                reason="limit",
                usage=Usage(),
            )
        async with self._turn:
            while (wait_s := self._wait_s(tokens)) is not None:
                await self._wait(wait_s)
            slot = _Slot(tokens=tokens, arrived_by=_now() + _TRANSIT_S)
            self._recent.append(slot)
            self._under_way += 1
        try:
            yield partial(self._answered, slot)
        finally:
            self._under_way -= 1
            self._changed.set()

    def _wait_s(self, tokens: int) -> float | None:
        """Compute the seconds until looking again may help, infinite where only an end does; None where now is fine."""
        now = _now()
        self._recent = [slot for slot in self._recent if slot.arrived_by + self._window_s > now]
        if self._under_way >= self._config.concurrency:
            return float("inf")
        requests, most_tokens = self._config.requests_per_minute, self._config.tokens_per_minute
        full = requests is not None and len(self._recent) >= requests
        if most_tokens is not None:
            full = full or sum(slot.tokens for slot in self._recent) + tokens > most_tokens
        return min(slot.arrived_by for slot in self._recent) + self._window_s - now if full else None

    def _answered(self, slot: _Slot, usage: Usage) -> None:
        slot.arrived_by = min(slot.arrived_by, _now())
        slot.tokens = usage.total_tokens

    async def _wait(self, seconds: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(None if seconds == float("inf") else seconds):
                await self._changed.wait()
        except TimeoutError:
            return


def _now() -> float:
    return asyncio.get_running_loop().time()
