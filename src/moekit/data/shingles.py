"""Texts as sets of hashed shingles, five words in a row, and what of them a whole source shares."""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]

SHINGLE_WORDS = 5

COMMON_TEXTS = (20, 1000)
"""A source shares what stands in a tenth of its texts, yet in at least and at most so many."""

OWN_SHARE = 0.1
"""A text with less than this share of its own, beside what its source shares, is compared by all of it."""

_OWN_SHINGLES = 5
_PIECE = 1 << 22  # bytes of a text that are cut into words at once, to bound the memory
_BATCH = 1 << 15  # words that are hashed together
_ODD = np.uint64(0x9E3779B97F4A7C15)

# Scripts without spaces fall into characters: most of theirs are three bytes of UTF-8.
WORD = re.compile(rb"[0-9A-Za-z_]+|[\x80-\xff]{1,3}")


@dataclass(frozen=True, eq=False)
class ShingleSets:
    """The sets of several texts behind each other, each sorted: text i has values[offsets[i] : offsets[i + 1]]."""

    values: Hashes
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Hashes:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def similarity(self, one: int, other: int) -> float:
        """Compute the Jaccard similarity of two texts: what they have in common, over what they have together."""
        mine, theirs = self[one], self[other]
        common = len(np.intersect1d(mine, theirs, assume_unique=True))
        return common / (len(mine) + len(theirs) - common)


def shingle_sets(texts: Iterable[bytes]) -> ShingleSets:
    """Hash every five words in a row to 32 bits; letter case, spaces and punctuation do not count."""
    values: list[Hashes] = []
    sizes: list[npt.NDArray[np.int64]] = []
    for batch in _batches(texts):
        found, counts = _sets_of(batch)
        values.append(found)
        sizes.append(counts)
    offsets = np.zeros(1 + sum(map(len, sizes)), dtype=np.int64)
    if sizes:
        np.cumsum(np.concatenate(sizes), out=offsets[1:])
    return ShingleSets(np.concatenate(values) if values else np.empty(0, np.uint32), offsets)


def without_shared(sets: ShingleSets, sources: Sequence[str]) -> ShingleSets:
    """Take out of each text what its source shares: a licence's header, the template of rows.

    A text of which hardly anything would be left keeps all: versions of one text share nearly everything, and are
    copies all the same.

    Args:
        sets: of the texts, those of a source behind each other.
        sources: the source of each text.
    """
    keep = np.ones(len(sets.values), dtype=bool)
    begin = 0
    for _, members in groupby(sources):
        end = begin + len(list(members))
        within = slice(int(sets.offsets[begin]), int(sets.offsets[end]))
        common = _common(sets.values[within], texts=end - begin)
        if len(common):
            keep[within] = _own(sets.values[within], sets.offsets[begin : end + 1] - sets.offsets[begin], common)
        begin = end
    if keep.all():
        return sets
    kept = np.concatenate([[0], np.cumsum(keep)])
    return ShingleSets(sets.values[keep], kept[sets.offsets])


def word_hashes(text: bytes) -> Hashes:
    """Hash each word of a text, in order."""
    found = [
        np.fromiter(map(zlib.crc32, words), dtype=np.uint32, count=len(words))
        for words in (WORD.findall(piece.lower()) for piece in _pieces(text))
    ]
    return found[0] if len(found) == 1 else np.concatenate(found)


def mixed(hashes: Hashes, words: int) -> npt.NDArray[np.uint64]:
    """Hash every so many words in a row to 64 bits: one value for each place where they begin."""
    count = max(0, len(hashes) - words + 1)
    result = np.zeros(count, dtype=np.uint64)
    for offset in range(words):
        result = (result + hashes[offset : offset + count]) * _ODD  # modulo 2^64
    return result


def _pieces(text: bytes) -> Iterator[bytes]:
    """Cut a long text where white space is near, so that its words are not in memory all at once."""
    begin = 0
    while len(text) - begin > _PIECE:
        cut = max(text.rfind(b" ", begin, begin + _PIECE), text.rfind(b"\n", begin, begin + _PIECE))
        cut = cut if cut > begin else begin + _PIECE
        yield text[begin:cut]
        begin = cut
    yield text[begin:] if begin else text


def _batches(texts: Iterable[bytes]) -> Iterator[list[Hashes]]:
    """Hash the words of each text; gives them many texts at a time. A text of few words is one word."""
    batch: list[Hashes] = []
    words = 0
    for text in texts:
        hashes = word_hashes(text)
        if len(hashes) <= SHINGLE_WORDS:
            whole = b" ".join(WORD.findall(text.lower())) or text.strip()
            hashes = np.array([zlib.crc32(whole)], dtype=np.uint32)
        batch.append(hashes)
        words += len(hashes)
        if words >= _BATCH:
            yield batch
            batch, words = [], 0
    if batch:
        yield batch


def _sets_of(batch: Sequence[Hashes]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Make the sets of the texts of a batch: all values, and how many each text has."""
    lengths = np.array([len(hashes) for hashes in batch])
    words = np.concatenate([*batch, np.zeros(SHINGLE_WORDS, np.uint32)])
    shingles = mixed(words, SHINGLE_WORDS)[: lengths.sum()] >> np.uint64(32)
    # A shingle lies in its text whole; of a text of one word there is that word.
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(lengths.sum())
    text = np.repeat(np.arange(len(batch), dtype=np.uint64), lengths)
    single = np.repeat(lengths == 1, lengths)
    shingles = np.where(single, words[: len(single)], shingles)
    inside = (left >= SHINGLE_WORDS) | single
    # Sorted by hand: np.unique goes by a table of hashes first, and takes three times as long.
    placed = np.sort(text[inside] << np.uint64(32) | shingles[inside])
    unique = placed[np.concatenate([[True], placed[1:] != placed[:-1]])]
    counts = np.bincount((unique >> np.uint64(32)).astype(np.int64), minlength=len(batch))
    return unique.astype(np.uint32), counts


def _common(values: Hashes, texts: int) -> Hashes:
    """Find the values, sorted, that so many of a source's texts share that they are the source's."""
    least, most = COMMON_TEXTS
    shared_by = min(max(least, -(-texts // 10)), most)
    if texts < least:
        return np.empty(0, np.uint32)
    ordered = np.sort(values)
    begins = ordered[: len(ordered) - shared_by + 1]
    return np.unique(begins[begins == ordered[shared_by - 1 :]])


def _own(values: Hashes, offsets: Offsets, common: Hashes) -> npt.NDArray[np.bool_]:
    """Tell which values count: those that are not common, or all of a text that has too little else."""
    own = np.empty(len(values), dtype=bool)
    for begin in range(0, len(values), _PIECE):
        piece = values[begin : begin + _PIECE]
        place = np.minimum(np.searchsorted(common, piece), len(common) - 1)
        own[begin : begin + _PIECE] = common[place] != piece
    sizes = np.diff(offsets)
    counts = np.add.reduceat(own, offsets[:-1], dtype=np.int64)
    is_copy = counts < np.maximum(OWN_SHARE * sizes, np.minimum(sizes, _OWN_SHINGLES))
    return own | np.repeat(is_copy, sizes)
