"""The lines of ARPA files as bytes, put together for a whole block of n-grams at once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moekit.models.ngram.smoothing import Floats
from moekit.models.ngram.trie import Places

Bytes = npt.NDArray[np.uint8]

DECIMALS = 12
_WIDTH = 4 + 1 + DECIMALS  # sign and three digits, point, decimals
_LARGEST = 999.0
_FOUR_DIGITS = np.array([list(b"%04d" % value) for value in range(10_000)], dtype=np.uint8)
_ZERO, _MINUS, _POINT = b"0-."


class Words:
    """The texts of a vocabulary in one array of bytes, by inside number."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        # one byte more: each field is copied with the byte behind it, which then becomes a tab, blank or newline
        self._bytes = np.frombuffer(b"".join(texts) + b"\n", dtype=np.uint8)

    def lines(self, probs: Floats, words: list[Places], backoffs: Floats | None) -> Bytes:
        """Write lines of n-grams.

        Args:
            probs: log10 probabilities (n,).
            words: the inside numbers of the words, first to last, (n,) each.
            backoffs: log10 backoffs (n,) or None.
        """
        source = [self._bytes]
        starts, lengths = [], []
        for numbers in (probs, backoffs):
            if numbers is not None:
                text, first, length = number_texts(numbers)
                starts.append(first + sum(map(len, source)))
                lengths.append(length)
                source.append(text)
        at = 1
        for word in words:
            starts.insert(at, self._starts[word])
            lengths.insert(at, self._lengths[word])
            at += 1
        start, length = np.stack(starts, axis=1), np.stack(lengths, axis=1) + 1
        ends = np.cumsum(length.ravel())
        index = np.repeat(start.ravel() - ends + length.ravel(), length.ravel())
        index += np.arange(len(index))
        lines = np.concatenate(source).take(index)
        separators = b"\t" + b" " * (len(words) - 1) + (b"\n" if backoffs is None else b"\t\n")
        lines[ends - 1] = np.tile(np.frombuffer(separators, dtype=np.uint8), len(probs))
        return lines


def number_texts(numbers: Floats) -> tuple[Bytes, Places, Places]:
    """Write numbers (n,) as decimals in an array of bytes, and tell where each begins (n,) and how long it is (n,).

    There are twelve decimals, zeros at the end left out: what was written so, or comes from a file of at most as many,
    is read and written without any change. Numbers beyond ±999 are written with all their digits.
    """
    if len(numbers) and np.abs(numbers).max() > _LARGEST:
        texts = [repr(number).encode() for number in numbers.tolist()]
        lengths = np.array([len(text) for text in texts])
        return np.frombuffer(b"".join(texts) + b"\n", dtype=np.uint8), np.cumsum(lengths) - lengths, lengths
    # whole and fraction apart: of 12 decimals and 3 digits before them, a double holds not quite all
    magnitudes = np.abs(numbers)
    whole = np.floor(magnitudes)
    fraction = np.rint((magnitudes - whole) * 10.0**DECIMALS).astype(np.int64)
    whole_digits = whole.astype(np.int64) + fraction // 10**DECIMALS
    fraction %= 10**DECIMALS
    text = np.empty((len(numbers), _WIDTH + 1), dtype=np.uint8)
    text[:, :4] = _FOUR_DIGITS[whole_digits]
    text[:, 4] = _POINT
    text[:, 5:9] = _FOUR_DIGITS[fraction // 10**8]
    text[:, 9:13] = _FOUR_DIGITS[fraction // 10**4 % 10**4]
    text[:, 13:17] = _FOUR_DIGITS[fraction % 10**4]
    begin = 3 - (whole_digits >= 10) - (whole_digits >= 100).astype(np.int64)
    negative = np.flatnonzero((numbers < 0) & (whole_digits + fraction > 0))
    begin[negative] -= 1
    text[negative, begin[negative]] = _MINUS
    end = np.full(len(numbers), _WIDTH)
    zeros = np.ones(len(numbers), dtype=np.bool_)
    for place in range(_WIDTH - 1, _WIDTH - 1 - DECIMALS, -1):
        zeros &= text[:, place] == _ZERO
        end -= zeros
    end -= zeros  # the point
    return text.ravel(), np.arange(len(numbers)) * (_WIDTH + 1) + begin, end - begin
