"""Stop strings however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekit.core.errors import UsageError
from moekit.inference.stop import StopStrings

LETTERS = st.text("ab\n", max_size=12)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: where for the first time the text ends in a stop string, the longest such is cut off."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@given(pieces=st.lists(LETTERS, max_size=8), stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3))
def test_the_text_is_the_same_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    filter_ = StopStrings(stops)
    shown, emitted = "", []
    for piece in pieces:
        emitted.append(filter_.push(piece))
        shown += piece
        # Nothing is held back that no stop string can begin with.
        if not filter_.stopped:
            held = shown[len("".join(emitted)) :]
            assert not held or any(len(held) < len(stop) and stop.startswith(held) for stop in stops)
    emitted.append(filter_.finish())
    assert ("".join(emitted), filter_.stopped) == expected("".join(pieces), stops)


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
