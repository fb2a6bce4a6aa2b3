"""Stop strings: text up to one of them, however it is cut into pieces.

A stop string may hold special tokens, which are no part of the text that is shown: it is searched in the text without
them, and in the text with them written out.
"""

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
        self._is_shown: list[bool] = []  # of each character held
        self.stopped = False

    def push(self, piece: str, *, shown: bool = True) -> str:
        """Give the text that is certain now; after a stop there is none.

        Args:
            piece: what follows.
            shown: whether it is text, and not a special token written out.
        """
        if self.stopped:
            return ""
        self._held += piece
        self._is_shown += [shown] * len(piece)
        text_places = [place for place, is_shown in enumerate(self._is_shown) if is_shown]
        text = "".join(self._held[place] for place in text_places)
        ends = _matches(self._held, self._stops)
        ends += [(text_places[end - 1] + 1, text_places[begin]) for end, begin in _matches(text, self._stops)]
        if ends:
            self.stopped = True
            certain = self._release(min(ends)[1])
            self._release(len(self._held))
            return certain
        begins = [len(self._held) - _overlap(self._held, stop) for stop in self._stops]
        begins += [text_places[len(text) - length] for stop in self._stops if (length := _overlap(text, stop))]
        return self._release(min(begins, default=len(self._held)))

    def finish(self) -> str:
        """Give what was held back, at the end of the text."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        """Give the text among the first `count` characters held, and forget those."""
        text = "".join(self._held[place] for place in range(count) if self._is_shown[place])
        self._held = self._held[count:]
        del self._is_shown[:count]
        return text


def _matches(text: str, stops: Sequence[str]) -> list[tuple[int, int]]:
    """Find where each stop string that is in the text first ends, and where it begins."""
    return [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]


def _overlap(text: str, stop: str) -> int:
    """Find the length of the longest beginning of `stop`, not all of it, that `text` ends in."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
