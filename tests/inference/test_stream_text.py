"""Text that comes token by token is the text of all tokens, and never half a character."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.tiny_models import byte_fallback, byte_level

from moekit.data.tokenizers import ByteTokenizer, Tokenizer
from moekit.inference.stream_text import TextStream


class Rust:
    """A tokenizer made here as moekit's protocol has it."""

    start = None

    def __init__(self, tokenizer: object) -> None:
        self.rust = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()  # type: ignore[attr-defined]

    def encode(self, text: str) -> list[int]:
        return list(self.rust.encode(text, add_special_tokens=False).ids)  # type: ignore[attr-defined]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.rust.decode(list(ids)))  # type: ignore[attr-defined]


MADE: dict[str, Tokenizer] = {
    "bytes": ByteTokenizer(),
    "byte_level": Rust(byte_level()),
    "byte_fallback": Rust(byte_fallback()),
}


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = TextStream(tokenizer.encode, tokenizer.decode)
    pieces = [stream.push(id_) for id_ in ids]
    return [*pieces, stream.finish()]


def whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """As a continuation: SentencePiece's decoders drop the space at the beginning of a text."""
    return tokenizer.decode([*tokenizer.encode("a"), *ids]).removeprefix("a")


@pytest.mark.parametrize("name", ["bytes", "byte_level"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_random_tokens(name: str, data: st.DataObject) -> None:
    """Most of them are no UTF-8."""
    tokenizer = MADE[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert "".join(streamed(tokenizer, ids)) == whole(tokenizer, ids)


@pytest.mark.parametrize("name", MADE)
@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=30))
def test_any_text(name: str, text: str) -> None:
    tokenizer = MADE[name]
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == whole(tokenizer, ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(3, 381), max_size=30))
def test_byte_tokens_that_are_no_text(ids: list[int]) -> None:
    """Where a run of bytes is not UTF-8 the decoder replaces all of it; here only characters not yet shown."""
    tokenizer = MADE["byte_fallback"]
    pieces = streamed(tokenizer, ids)
    words = [id_ for id_ in ids if id_ >= 259]
    shown = "".join(pieces)
    shown.encode()
    place = 0
    for id_ in words:  # no word is lost, and their order is kept
        word = whole(tokenizer, [id_])
        place = shown.index(word, place) + len(word)


def test_a_character_comes_with_its_last_byte() -> None:
    for name in MADE:
        tokenizer = MADE[name]
        ids = tokenizer.encode("😀")
        pieces = streamed(tokenizer, ids[-4:] if len(ids) >= 4 else ids)
        assert pieces[-1] == ""
        assert pieces[-2] == "😀"


def test_special_tokens_inside_a_character() -> None:
    tokenizer = MADE["byte_level"]
    first, *others = tokenizer.encode("\u0bf5")  # three bytes that were never merged
    pieces = streamed(tokenizer, [first, *[1] * 50, *others])
    assert "".join(pieces) == "\u0bf5"


def test_the_cost_of_a_token_does_not_grow() -> None:
    """Also where nothing is ever a whole character."""
    for byte in (0xFF, 0x80, 0xF0):
        tokenizer, sizes = ByteTokenizer(), []

        def decode(ids: Sequence[int], tokenizer: ByteTokenizer = tokenizer, sizes: list[int] = sizes) -> str:
            sizes.append(len(ids))
            return tokenizer.decode(ids)

        stream = TextStream(tokenizer.encode, decode)
        text = "".join(stream.push(byte) for _ in range(300)) + stream.finish()
        assert text == "\ufffd" * 300
        assert max(sizes) < 40
        assert len(sizes) < 300 * 16
