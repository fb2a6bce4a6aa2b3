"""Passages of a held-out text that stand in the training text of the same file, too."""

import numpy as np
import numpy.typing as npt

from moekit.data.shingles import WORD, mixed, word_hashes

PASSAGE_WORDS = 24
"""So many words in a row are a passage: shorter ones come back by themselves."""

_OVERLAP = 1 << 12  # bytes after a piece in which a passage that begins in it may end
_PIECE = (1 << 22) - _OVERLAP


def without_passages_of(held_out: bytes, text: bytes) -> list[bytes]:
    """Cut out of `text` each passage that `held_out` has as well, letter case, spaces and punctuation aside.

    Returns:
        What stands before, between and behind these passages; all of `text` where there are none.
    """
    known = np.unique(mixed(word_hashes(held_out), PASSAGE_WORDS))
    if not len(known):
        return [text]
    pieces, done = [], 0
    for begin, end in _shared(text, known):
        pieces.append(text[done : max(done, begin)])
        done = max(done, end)
    return [piece for piece in (*pieces, text[done:]) if piece]


def _shared(text: bytes, known: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Find the places of passages of which the hash is known, in order, those that overlap joined."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE + _OVERLAP]
        hits = np.flatnonzero(np.isin(mixed(word_hashes(piece), PASSAGE_WORDS), known))
        if not len(hits):
            continue
        words = [match.span() for match in WORD.finditer(piece.lower())]
        for first in hits.tolist():
            begin, end = start + words[first][0], start + words[first + PASSAGE_WORDS - 1][1]
            if found and begin <= found[-1][1]:
                found[-1] = found[-1][0], max(end, found[-1][1])
            else:
                found.append((begin, end))
    return found
