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


SPECIAL = "<a>"
PIECES = st.lists(st.one_of(LETTERS, st.just(SPECIAL)), max_size=8)


def expected_with_special(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """As above, for the text with special tokens written out and for the text without them, whichever ends first."""
    characters = [(character, piece != SPECIAL) for piece in pieces for character in piece]
    for end in range(1, len(characters) + 1):
        written = characters[:end]
        begins = []
        for searched in (list(enumerate(written)), [each for each in enumerate(written) if each[1][1]]):
            text = "".join(character for _, (character, _) in searched)
            if searched and searched[-1][0] == end - 1:
                begins += [searched[len(text) - len(stop)][0] for stop in stops if text.endswith(stop)]
        if begins:
            return "".join(character for character, is_shown in written[: min(begins)] if is_shown), True
    return "".join(character for character, is_shown in characters if is_shown), False


@given(pieces=PIECES, stops=st.lists(st.text("ab<>", min_size=1, max_size=6), max_size=3))
def test_special_tokens_are_searched_and_not_shown(pieces: list[str], stops: list[str]) -> None:
    filter_ = StopStrings(stops)
    emitted = [filter_.push(piece, shown=piece != SPECIAL) for piece in pieces]
    emitted.append(filter_.finish())
    assert ("".join(emitted), filter_.stopped) == expected_with_special(pieces, stops)


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
