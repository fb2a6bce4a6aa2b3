"""When a call ends, and what was heard of its answer until then."""

import asyncio

from moekit.core.messages import OnText


class CallClock:
    """Ends a call that has fallen silent, and one that is still under way at its deadline.

    Args:
        silence_s: seconds without a piece of an answer, from the beginning on: waits and retries are silent.
        deadline: of the whole call, by the event loop's clock.

    Attributes:
        within: the block that it ends, with TimeoutError.
    """

    def __init__(self, silence_s: float, deadline: float) -> None:
        self._silence_s, self._deadline = silence_s, deadline
        self._heard_at = asyncio.get_running_loop().time()
        self.within = asyncio.timeout_at(self.ends)

    @property
    def ends(self) -> float:
        """When it ends if nothing is heard any more."""
        return min(self._heard_at + self._silence_s, self._deadline)

    @property
    def waited_s(self) -> float:
        """How long it waits for a piece."""
        return self.ends - self._heard_at

    @property
    def is_silence(self) -> bool:
        """Whether it ends for silence, and not at the deadline."""
        return self._heard_at + self._silence_s < self._deadline

    def hear(self) -> None:
        """Take notice of a sign of an answer."""
        self._heard_at = asyncio.get_running_loop().time()
        if not self.within.expired():
            self.within.reschedule(self.ends)


class Listener:
    """Hears an answer: keeps its text, winds the clock and passes the text on.

    Args:
        clock: of the call.
        on_text: whom the text is passed on to; None where nobody waits for pieces.

    Attributes:
        text: of the attempt that is under way.
    """

    def __init__(self, clock: CallClock, on_text: OnText | None) -> None:
        self._clock, self._on_text = clock, on_text
        self.text = ""

    @property
    def has_passed_on(self) -> bool:
        """Whether somebody has heard a part of the answer, so that another attempt cannot begin it anew."""
        return bool(self.text) and self._on_text is not None

    def forget(self) -> None:
        """Forget what an attempt that failed has said."""
        if not self.has_passed_on:
            self.text = ""

    async def __call__(self, piece: str) -> None:
        """Hear a piece; an empty one is a sign of an answer."""
        self._clock.hear()
        if piece:
            self.text += piece
            if self._on_text is not None:
                await self._on_text(piece)
