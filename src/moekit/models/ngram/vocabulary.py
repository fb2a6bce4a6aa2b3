"""Words and their numbers, and the ways from text to a stream of numbers.

Two numberings are about. Users number the words 0 ... V - 1 and then <unk> V, <s> V + 1, </s> V + 2, so that a byte
model's tokens are the values of the bytes. Inside, <unk>, <s> and </s> are 0, 1 and 2 and word w is w + 3, so that a
vocabulary may grow while text streams by. A *stream* is an iterable of arrays of inside numbers in which END follows
each sentence; where the arrays are cut means nothing.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moekit.core.errors import MoekitError, UsageError

Ids = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.integer]

UNKNOWN, BEGIN, END = range(3)
SPECIAL_WORDS = ("<unk>", "<s>", "</s>")
SPECIALS = len(SPECIAL_WORDS)

_PIECE_TOKENS = 1 << 16
_TEXT_BLOCK = 1 << 18
# lmplz parts words at these and the newline alone; \v and \f, at which bytes.split() parts too, belong to words
_BLANKS = bytes.maketrans(b"\0\t\r", b"   ")
_WORD_OR_NEWLINE = re.compile(rb"[^ \n]+|\n")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words of a model, in the order of their token ids; <unk>, <s> and </s> are not among `words`."""

    words: Sequence[str]

    @cached_property
    def ids(self) -> dict[str, int]:
        """The token id of each word, of <unk>, <s> and </s> too."""
        return {word: index for index, word in enumerate((*self.words, *SPECIAL_WORDS))}

    @property
    def unknown(self) -> int:
        """The token id of <unk>."""
        return len(self.words)

    @property
    def begin(self) -> int:
        """The token id of <s>."""
        return len(self.words) + 1

    @property
    def end(self) -> int:
        """The token id of </s>."""
        return len(self.words) + 2

    @cached_property
    def is_bytes(self) -> bool:
        """Whether these are the 256 bytes, token ids being their values."""
        return len(self.words) == 256 and list(self.words) == list(byte_vocabulary().words)

    def __len__(self) -> int:
        """Count the token ids: V words and three more."""
        return len(self.words) + SPECIALS

    def inside(self, tokens: Integers) -> npt.NDArray[np.int64]:
        """Convert token ids of any shape to inside numbers; raise UsageError where one is out of range."""
        if tokens.dtype.kind not in "iu":
            raise UsageError(f"Tokens are integers, not {tokens.dtype}.")
        if tokens.size and (tokens.min() < 0 or tokens.max() >= len(self)):
            raise UsageError(
                f"Token ids go from 0 to {len(self) - 1} in this n-gram model; got {_outside(tokens, self)}."
            )
        shifted = tokens.astype(np.int64) + SPECIALS
        return np.where(shifted >= len(self), shifted - len(self), shifted)


def _outside(tokens: Integers, vocabulary: Vocabulary) -> int:
    return int(tokens.min()) if tokens.min() < 0 else int(tokens.max())


def byte_vocabulary() -> Vocabulary:
    """Make the vocabulary of the 256 bytes, written `<0x00>` to `<0xFF>`; their token ids are their values."""
    return Vocabulary([f"<0x{value:02X}>" for value in range(256)])


def numbered_vocabulary(size: int) -> Vocabulary:
    """Make a vocabulary of `size` tokens that are written as their ids."""
    return Vocabulary([str(value) for value in range(size)])


def stream_of_sentences(sentences: Iterable[Integers], words: int) -> Iterator[Ids]:
    """Stream sentences, one-dimensional arrays of token ids below `words`; raise UsageError where they are not."""
    end = np.array([END], dtype=np.uint32)
    pieces: list[Ids] = []
    waiting = 0
    for sentence in sentences:
        ids = np.asarray(sentence)
        if ids.size:
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise UsageError(f"A sentence is a row of integers, not {ids.ndim}-dimensional {ids.dtype}.")
            if ids.min() < 0 or ids.max() >= words:
                wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
                raise UsageError(f"Token ids of sentences go from 0 to {words - 1}; got {wrong}.")
        for start in range(0, ids.size, _PIECE_TOKENS):
            piece = ids[start : start + _PIECE_TOKENS].astype(np.uint32)
            piece += SPECIALS
            pieces.append(piece)
            waiting += piece.size
            if waiting >= _PIECE_TOKENS:
                yield np.concatenate(pieces)
                pieces, waiting = [], 0
        pieces.append(end)
        waiting += 1
    if pieces:
        yield np.concatenate(pieces)


class _GrowingIds(dict[bytes, int]):
    """Numbers words as they come."""

    def __missing__(self, word: bytes) -> int:
        self[word] = number = len(self)
        return number


@dataclass
class WordReader:
    """Reads text, one sentence a line, as KenLM's lmplz does, and collects its vocabulary while it streams.

    Words are parted by space, tab, carriage return and NUL, lines by the newline; an empty line is a sentence without
    words. Unlike lmplz, which leaves </s> out there, a last line without a newline is a sentence like any other.
    """

    name: str = "the text"
    _ids: _GrowingIds = field(default_factory=_GrowingIds)

    def __post_init__(self) -> None:
        for word in SPECIAL_WORDS:
            self._ids[word.encode()]  # asking for a word numbers it

    def vocabulary(self) -> Vocabulary:
        """List the words met so far, in the order of their first appearance.

        Bytes that are no UTF-8 become surrogates.
        """
        return Vocabulary([word.decode("utf-8", "surrogateescape") for word in self._ids][SPECIALS:])

    def stream(self, blocks: Iterable[bytes]) -> Iterator[Ids]:
        """Stream text that comes in blocks cut anywhere; raise MoekitError where a word is <unk>, <s> or </s>."""
        rest = b""
        lines = 0
        for block in blocks:
            cut = block.rfind(b"\n") + 1
            if not cut:
                rest += block  # quadratic in a line of very many blocks, which text does not hold
                continue
            text = rest + block[:cut]
            yield self._numbers(text, lines)
            lines += text.count(b"\n")
            rest = block[cut:]
        if rest:
            yield self._numbers(rest + b"\n", lines)

    def _numbers(self, text: bytes, lines_before: int) -> Ids:
        text = text.translate(_BLANKS)
        for special in SPECIAL_WORDS:
            if special.encode() in text:
                self._refuse_specials(text, lines_before)
        if b"\v" in text or b"\f" in text:
            words = [b"</s>" if word == b"\n" else word for word in _WORD_OR_NEWLINE.findall(text)]
        else:
            words = text.replace(b"\n", b" </s> ").split()
        return np.fromiter(map(self._ids.__getitem__, words), dtype=np.uint32, count=len(words))

    def _refuse_specials(self, text: bytes, lines_before: int) -> None:
        for number, line in enumerate(text.split(b"\n"), start=lines_before + 1):
            for special in SPECIAL_WORDS:
                if special.encode() in line.split(b" "):
                    raise MoekitError(f"Line {number} of {self.name} holds {special}, which no text may; take it out.")


def text_blocks(text: Path | Iterable[str | bytes]) -> Iterator[bytes]:
    """Yield blocks of bytes of a file, or of lines: each line is a sentence, whether it ends in a newline or not."""
    if isinstance(text, Path):
        try:
            with text.open("rb") as file:
                while block := file.read(_TEXT_BLOCK):
                    yield block
        except OSError as error:
            raise MoekitError(f"{text} cannot be read: {error.strerror}.") from error
        return
    buffer = io.BytesIO()
    for line in text:
        encoded = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if b"\n" in encoded[:-1]:
            raise UsageError("A line holds a newline; give one sentence a line.")
        buffer.write(encoded)
        if not encoded.endswith(b"\n"):
            buffer.write(b"\n")
        if buffer.tell() >= _TEXT_BLOCK:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    yield buffer.getvalue()
