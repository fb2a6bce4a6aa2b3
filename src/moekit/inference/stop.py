"""Stop strings: text up to one of them, however it is cut into pieces."""

from collections.abc import Sequence

from moekit.core.errors import UsageError


class StopStrings:
    """Lets text through, up to the stop string that ends first; where several end together, up to the longest.

    What may turn out to be the beginning of a stop string is held back.

    Raises:
        UsageError: where a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise UsageError("A stop string is empty, and would stop everything.")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Give the text that is certain now; after a stop there is none."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        cut = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Give what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Find the length of the longest beginning of `stop`, not all of it, that `text` ends in."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
