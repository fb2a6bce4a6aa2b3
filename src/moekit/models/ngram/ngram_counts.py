"""Counting the n-grams of a stream, in suffix order, in bounded memory.

Each token but <s> ends one n-gram: it and the N - 1 before it in its sentence, <s> standing for all that would lie
before the sentence. Packed into a key with the *last* word first, sorted n-grams form a trie of suffixes: all that
share their last k words are neighbours, so that one pass over the sorted N-grams gives the counts of every order
(Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model Estimation", sections 3.1 and 3.2).
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from moekit.core import files
from moekit.core.errors import UsageError
from moekit.models.ngram.sorting import ExternalSorter, Keys, Run
from moekit.models.ngram.vocabulary import BEGIN, END, Ids

MAX_ORDER = 16
LEAST_MEMORY = 1 << 16
DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True)
class Packing:
    """How an n-gram of `order` words of `bits` bits becomes a key: last word first, as many to a number as fit."""

    order: int
    bits: int

    @classmethod
    def of(cls, order: int, ids: int) -> "Packing":
        """Choose the packing for words numbered below `ids`."""
        return cls(order, max(ids - 1, 1).bit_length())

    @property
    def per_column(self) -> int:
        """The words in one number."""
        return 64 // self.bits

    @property
    def columns(self) -> int:
        """The numbers in a key."""
        return -(-self.order // self.per_column)

    def pack(self, padded: Ids) -> list[Keys]:
        """Make the keys of the n-grams that end at each place of `padded`, the first `order` - 1 and <s> excepted."""
        real = np.flatnonzero(padded[self.order - 1 :] != BEGIN)
        columns = []
        for first in range(0, self.order, self.per_column):
            key = np.zeros(len(padded) - self.order + 1, dtype=np.uint64)
            for back in range(first, min(first + self.per_column, self.order)):
                key <<= np.uint64(self.bits)
                key |= padded[self.order - 1 - back : len(padded) - back]
            columns.append(key[real])
        return columns

    def unpack(self, columns: list[Keys]) -> list[Ids]:
        """Unpack the words of keys: the last of each n-gram, the one before it, and so on."""
        words: list[Ids] = []
        mask = np.uint64((1 << self.bits) - 1)
        for first in range(0, self.order, self.per_column):
            here = min(self.per_column, self.order - first)
            column = columns[first // self.per_column]
            words += [
                (column >> np.uint64(self.bits * (here - 1 - place)) & mask).astype(np.uint32) for place in range(here)
            ]
        return words


def count_ngrams(
    stream: Iterable[Ids], packing: Packing, *, memory_bytes: int = DEFAULT_MEMORY, folder: Path | None = None
) -> Iterator[Run]:
    """Count the n-grams of `stream`: yield ascending runs of keys, those padded with several <s> included.

    It holds at most about `memory_bytes`; what does not fit is sorted in `folder` (the system's temporary folder where
    None), in files that are never seen there.

    Raises:
        UsageError: where memory_bytes is below LEAST_MEMORY.
        MoekitError: where the disk is full.
    """
    if memory_bytes < LEAST_MEMORY:
        raise UsageError(f"Counting n-grams takes memory_bytes of at least {LEAST_MEMORY}; got {memory_bytes}.")
    with ExternalSorter(packing.columns, memory_bytes, temporary_folder(folder)) as sorter:
        for padded in _padded(stream, packing.order, sorter.chunk_keys):
            sorter.add(packing.pack(padded))
        yield from sorter.blocks()


def temporary_folder(folder: Path | None) -> Path:
    """Give `folder`, made where it is missing, or the system's temporary folder."""
    if folder is None:
        return Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def kept_on_disk(stream: Iterable[Ids], folder: Path | None) -> Iterator[Iterator[Ids]]:
    """Read `stream` to its end, into a file without a name from which it can be read once more."""
    where = temporary_folder(folder)
    with files.full_disk_in_words(where / "temporary files"), tempfile.TemporaryFile(dir=where) as file:
        for piece in stream:
            piece.tofile(file)
        file.flush()
        file.seek(0)
        yield _read_back(file)


def _read_back(file: IO[bytes]) -> Iterator[Ids]:
    while len(piece := np.fromfile(file, dtype=np.uint32, count=1 << 16)):
        yield piece


def _padded(stream: Iterable[Ids], order: int, most: int) -> Iterator[Ids]:
    """Put `order` - 1 times <s> before each sentence of the stream.

    The pieces are of about `most` words and overlap by as many.
    """
    pads = order - 1
    step = max(1, most // order)
    pieces: list[Ids] = [np.full(pads, BEGIN, dtype=np.uint32)]
    waiting = 0
    for piece in stream:
        for start in range(0, len(piece), step):
            part = _with_pads(piece[start : start + step], pads)
            pieces.append(part)
            waiting += len(part)
            if waiting >= most:
                whole = np.concatenate(pieces)
                yield whole
                pieces, waiting = [whole[len(whole) - pads :]], 0
    if waiting:
        yield np.concatenate(pieces)


def _with_pads(piece: Ids, pads: int) -> Ids:
    if not pads:
        return piece
    ends: npt.NDArray[np.int64] = np.flatnonzero(piece == END)
    repeats = np.ones(len(piece), dtype=np.int64)
    repeats[ends] += pads
    padded = np.repeat(piece, repeats)
    places = ends + np.arange(len(ends)) * pads
    for offset in range(1, pads + 1):
        padded[places + offset] = BEGIN
    return padded
