"""Near-duplicates: which texts are so alike that they must not stand on both sides of the split.

U texts, B bands.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from moekit.data.documents import Document
from moekit.data.shingles import ShingleSets, shingle_sets, without_shared

NEAR_DUPLICATE = 0.5
"""Jaccard similarity of two documents' sets of five-word shingles from which they are near-duplicates."""

# 16 bands of 3 rows meet for a pair of similarity 0.5 with probability 0.88, of 0.6 with 0.98.
_BANDS, _ROWS = 16, 3
_CHUNK = 1 << 16  # shingles that are permuted at once, to bound the memory
_CANDIDATES = 100  # of one text, those that meet it in most bands


class NearDuplicates:
    """Which documents must stay together, and which of others are alike.

    Candidates are found by MinHash (Broder 1997) over shingles of words, in bands (Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, section 3.4), and then compared truly: by the shingles themselves, without those that a
    whole domain shares (`moekit.data.shingles.without_shared`). A short text that is quoted in a much longer one is not
    found.

    Args:
        documents: sorted by domain.

    Attributes:
        groups: the documents' indices in groups: of one `group`, with the same text, or near-duplicates of the same
            document, the first of them. What is like another member alone is not of the group. Order is kept, within
            groups and of their first members.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self._parents = list(range(len(documents)))
        index_of_text: dict[bytes, int] = {}
        index_of_group: dict[str, int] = {}
        text_of_document = np.empty(len(documents), dtype=np.int64)
        for index, document in enumerate(documents):
            first = index_of_text.setdefault(document.text, index)
            text_of_document[index] = first
            self._join(index, first)
            if document.group is not None:
                self._join(index, index_of_group.setdefault(document.group, index))
        self._firsts = np.fromiter(index_of_text.values(), dtype=np.int64, count=len(index_of_text))
        self._text_of_document = np.searchsorted(self._firsts, text_of_document)
        del index_of_text, text_of_document
        sets = shingle_sets(documents[index].text for index in self._firsts)
        self._sets = without_shared(sets, [documents[index].domain for index in self._firsts])
        self._buckets_UB = _buckets(self._sets)
        self._join_like()
        groups: dict[int, list[int]] = {}
        for index in range(len(documents)):
            groups.setdefault(self._root(index), []).append(index)
        self.groups = list(groups.values())

    def like(self, held: Sequence[int], others: Sequence[int]) -> list[int]:
        """Give those of the documents `others` that are near-duplicates of one of `held`."""
        index = _Index(self._sets, self._buckets_UB)
        for text in sorted(set(self._text_of_document[list(held)].tolist())):
            index.add(text)
        asked = self._text_of_document[list(others)].tolist()
        found = {text for text in sorted(set(asked)) if index.nearest(text) is not None}
        return [other for other, text in zip(others, asked, strict=True) if text in found]

    def _join_like(self) -> None:
        """Join each text to the first one of a group that it is most like; else it begins a group."""
        index = _Index(self._sets, self._buckets_UB)
        for text in np.flatnonzero((self._buckets_UB >= 0).any(1)).tolist():
            nearest = index.nearest(text)
            if nearest is None:
                index.add(text)
            else:
                self._join(int(self._firsts[nearest]), int(self._firsts[text]))

    def _root(self, index: int) -> int:
        parents = self._parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def _join(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parents[high] = low


class _Index:
    """Texts by the buckets that they fall into, of which there is one a band."""

    def __init__(self, sets: ShingleSets, buckets_UB: npt.NDArray[np.int32]) -> None:
        self._sets, self._buckets_UB = sets, buckets_UB
        self._texts: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, text: int) -> None:
        """Add a text."""
        for bucket in self._of(text):
            self._texts[bucket].append(text)

    def nearest(self, text: int) -> int | None:
        """Find the text that is most like this one; None where none is a near-duplicate."""
        met = Counter(other for bucket in self._of(text) for other in self._texts.get(bucket, ()))
        size = len(self._sets[text])
        best, likest = None, NEAR_DUPLICATE
        for other, _ in met.most_common(_CANDIDATES):
            smaller, larger = sorted((size, len(self._sets[other])))
            if smaller < likest * larger:
                continue
            similarity = 1.0 if other == text else self._sets.similarity(text, other)
            if similarity > likest or (best is None and similarity == likest):
                best, likest = other, similarity
        return best

    def _of(self, text: int) -> Iterator[tuple[int, int]]:
        return ((band, bucket) for band, bucket in enumerate(self._buckets_UB[text].tolist()) if bucket >= 0)


def _buckets(sets: ShingleSets) -> npt.NDArray[np.int32]:
    """Find the bucket of each text in each band, (U, B): texts with equal minima of a band share one; -1: alone."""
    philox = np.random.Philox(key=0)
    factors = philox.random_raw(_BANDS * _ROWS) | np.uint64(1)
    shifts = philox.random_raw(_BANDS * _ROWS)
    buckets_UB = np.empty((len(sets), _BANDS), dtype=np.int32)
    band_U = np.empty(len(sets), dtype=np.uint64)
    for band in range(_BANDS):
        rows = slice(band * _ROWS, (band + 1) * _ROWS)
        for begin, end in _ranges(sets.offsets):
            first, last = sets.offsets[begin], sets.offsets[end]
            values = sets.values[first:last].astype(np.uint64)
            starts = sets.offsets[begin:end] - first
            key = np.zeros(end - begin, dtype=np.uint64)
            for factor, shift in zip(factors[rows], shifts[rows], strict=True):
                minima = np.minimum.reduceat((values * factor + shift) >> np.uint64(32), starts)
                key = (key ^ minima) * factors[0]
            band_U[begin:end] = key
        buckets_UB[:, band] = _numbered(band_U)
    return buckets_UB


def _ranges(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut the texts into ranges of about so many shingles that they fit the memory."""
    begin = 0
    while begin < len(offsets) - 1:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _CHUNK, side="right")) - 1)
        yield begin, end
        begin = end


def _numbered(key_U: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Give equal keys the same number, and -1 to a key that nobody else has."""
    order = np.argsort(key_U, kind="stable")
    ordered = key_U[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    number = np.cumsum(begins, dtype=np.int32) - 1
    alone = np.bincount(number)[number] == 1
    result = np.empty(len(key_U), dtype=np.int32)
    result[order] = np.where(alone, -1, number)
    return result
