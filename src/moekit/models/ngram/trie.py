"""N-grams as a trie of suffixes: each n-gram hangs below itself without its first word, by that first word.

One `Level` an order. Whoever knows where "b c" lies finds "a b c" by its first word; the n-grams that end at a place
of a text are thus found one after the other, from short to long, and the contexts of a word are those found one place
before. Level 1 has a place for each inside number of a word (see vocabulary.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Level:
    """The n-grams of one order from 2 on.

    Attributes:
        bits: the bits of a word's number.
        keys: (n,), ascending: the place of the n-gram without its first word, times 2^bits, plus that first word.
    """

    bits: int
    keys: Places

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def parents(self) -> Places:
        """The place in the level below of each n-gram without its first word, (n,)."""
        return self.keys >> self.bits

    @property
    def first_words(self) -> Places:
        """The first word of each n-gram, (n,)."""
        return self.keys & ((1 << self.bits) - 1)

    def find(self, parents: Places, words: Places) -> Places:
        """Find where the n-grams of these parents and first words lie, -1 where there is none: (n,)."""
        if not len(self.keys):
            return np.full(len(parents), -1, dtype=np.int64)
        slots = self._slots
        keys = parents << self.bits
        keys |= words
        at = self._hash(keys)
        found = slots.take(at).astype(np.int64)
        wrong = self.keys.take(found, mode="clip") != keys
        wrong &= found >= 0
        todo = np.flatnonzero(wrong)
        while todo.size:
            at = at.take(todo) if at.size != todo.size else at
            at += 1
            here = slots.take(at).astype(np.int64)
            found[todo] = here
            wrong = self.keys.take(here, mode="clip") != keys.take(todo)
            wrong &= here >= 0
            at = at[wrong]
            todo = todo[wrong]
        return found

    def _hash(self, keys: Places) -> Places:
        hashed = keys.view(np.uint64) * _FIBONACCI
        hashed >>= np.uint64(64 - self._hash_bits)
        return hashed.view(np.int64)

    @property
    def _hash_bits(self) -> int:
        return max(2, (2 * len(self.keys) - 1).bit_length())

    @cached_property
    def _slots(self) -> npt.NDArray[np.signedinteger]:
        # A hash table with linear probing, filled at once: in the order of their hashes, each key takes the first
        # slot that is neither before its own nor taken. Searching sorted keys takes 20 cache misses where this takes
        # two.
        hashed = self._hash(self.keys)
        order = np.argsort(hashed)
        steps = np.arange(len(order))
        places = np.maximum.accumulate(hashed[order] - steps) + steps
        kind = np.int32 if len(order) < 1 << 31 else np.int64
        slots: npt.NDArray[np.signedinteger] = np.full(max(int(places[-1]) + 2, 1 << self._hash_bits), -1, dtype=kind)
        slots[places] = order
        return slots


def words_of(levels: list[Level], order: int, start: int, stop: int) -> list[Places]:
    """List the words, first to last, of the n-grams `start` to `stop` of an order; `levels` begins with order 2."""
    words = []
    at = np.arange(start, stop)
    for level in reversed(levels[: order - 1]):
        keys = level.keys[at]
        words.append(keys & ((1 << level.bits) - 1))
        at = keys >> level.bits
    return [*words, at]


def paths(levels: list[Level], words: Places, depth: Places) -> Iterator[Places]:
    """Yield for order 2, 3, ... where the n-gram that ends at each of `words` (n,) lies, -1 where there is none.

    depth: (n,), how many words may be looked at, that one included, so that no n-gram begins before its sentence.
    """
    at = words.copy()
    for back, level in enumerate(levels, start=1):
        found = np.full(len(words), -1, dtype=np.int64)
        todo = np.flatnonzero((at >= 0) & (depth > back))
        found[todo] = level.find(at.take(todo), words.take(todo - back))
        yield found
        at = found
