"""The same request twice, where the first one is slow; the first to show a sign of an answer wins."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from moekit.core.messages import OnText

T = TypeVar("T")

Request = Callable[[OnText, Callable[[], None]], Awaitable[T]]
"""Gets where to pass text on to, and what to call when it really goes out, not held up by limits any more."""


class Hedge(Generic[T]):
    """Runs a request and, `after_s` after it went out, a second one, unless the first has passed on text by then.

    Whichever passes on text first has the floor, and the other is cancelled; else the first to end without an error
    wins. An error is the outcome only where nothing else can come any more.
    """

    def __init__(self, request: Request[T], after_s: float, on_text: OnText) -> None:
        self._request, self._after_s, self._on_text = request, after_s, on_text
        self._runs: list[asyncio.Task[T]] = []
        self._speaker: asyncio.Task[T] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def run(self) -> T:
        """Wait for the outcome; all that was begun has ended when this returns."""
        self._start()
        try:
            return await self._outcome
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for run in self._runs:
                run.cancel()
            await asyncio.gather(*self._runs, return_exceptions=True)

    def _start(self) -> None:
        run = asyncio.ensure_future(self._request(self._say, self._sent))
        self._runs.append(run)
        run.add_done_callback(self._ended)

    def _sent(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._second)

    def _second(self) -> None:
        if self._speaker is None and not self._outcome.done():
            self._start()

    async def _say(self, text: str) -> None:
        if text and self._speaker is None:  # an empty piece is a sign of life, and no text yet
            self._speaker = asyncio.current_task()
            for run in self._runs:
                if run is not self._speaker:
                    run.cancel()
        await self._on_text(text)  # the other one, cancelled, says nothing any more

    def _ended(self, run: asyncio.Task[T]) -> None:
        if self._outcome.done() or run.cancelled():
            return
        error = run.exception()
        if error is None:
            self._outcome.set_result(run.result())
        elif run is self._speaker or all(other.done() for other in self._runs):
            self._outcome.set_exception(error)
