"""A text as a vector that needs no model: which short runs of bytes are in it (TF-IDF of hashed n-grams).

N texts, F features.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]

FEATURES = 4096
_LENGTHS = (1, 2, 3, 4)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(52)
"""64 - 52 bits of a product are one of 4096 features."""


class TfIdf:
    """Vectors of texts, of length 1: (1 + ln count) times the n-gram's rarity in the texts that it was made from.

    n-grams are of 1 to 4 bytes and hashed into 4096 features (Weinberger et al., arXiv 0902.2206), so that nothing
    has to be stored and every text has a vector. The rarity is ln((1 + N) / (1 + n)) + 1 of an n-gram in n of N texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        seen_F = np.sum([_counts(text) > 0 for text in texts], axis=0)
        self._rarity_F = np.log((1 + len(texts)) / (1 + seen_F)) + 1

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Compute x_NF, each row of length 1; an empty text is a row of zeros."""
        counts_NF = np.array([_counts(text) for text in texts], dtype=np.float64)
        weighted_NF = np.log1p(counts_NF - 1, where=counts_NF > 0, out=np.full_like(counts_NF, -1)) + 1
        return normalized(weighted_NF * self._rarity_F)


def normalized(x_NF: Vectors) -> Vectors:
    """Scale rows to length 1; rows of length 0 stay."""
    length_N1 = np.linalg.norm(x_NF, axis=1, keepdims=True)
    divided: Vectors = x_NF / np.where(length_N1 > 0, length_N1, 1)
    return divided


def _counts(text: str) -> npt.NDArray[np.int64]:
    """Count how often each feature is in the text."""
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.uint64)
    counts_F = np.zeros(FEATURES, dtype=np.int64)
    for length in _LENGTHS:
        starts = len(data) - length + 1
        if starts <= 0:
            break
        # The bytes of an n-gram side by side, and its length so that those of different lengths differ; then
        # Fibonacci hashing: of the product with 2^64 / golden ratio the top bits depend on all of them.
        gram = np.full(starts, length, dtype=np.uint64)
        for place in range(length):
            gram = (gram << np.uint64(8)) | data[place : place + starts]
        counts_F += np.bincount(((gram * _PRIME) >> _SHIFT).astype(np.int64), minlength=FEATURES)
    return counts_F
