"""The split into training and held-out text: by whole files, with near-duplicates on one side only."""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moekit.core.errors import UsageError
from moekit.data.documents import Document, is_text

HELD_OUT_SHARE = 0.1
"""Of each domain's bytes; where whole files are held out, it comes to between half and 1.5 times this share."""

NEAR_DUPLICATE = 0.5
"""Jaccard similarity of two documents' sets of five-word shingles from which they are near-duplicates."""

_SHINGLE_WORDS = 5
_PERMUTATIONS = 128
_BANDS = (32, 4)  # 32 bands of 4 rows meet for a pair of similarity 0.5 with probability 0.87, of 0.6 with 0.99
_BATCH = 1 << 15  # shingles that are permuted at once, to bound the memory
_MAX_BYTES = 16_000_000  # of a document, which speak for the whole of it

# Scripts without spaces fall into characters: most of theirs are three bytes of UTF-8.
_WORD = re.compile(rb"[0-9A-Za-z_]+|[\x80-\xff]{1,3}")


@dataclass(frozen=True)
class Split:
    """Documents on the two sides of the split.

    Attributes:
        left_out: near-duplicates of a file that had to be cut in two, which belong on neither side.
    """

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    left_out: tuple[Document, ...]


def split_documents(documents: Sequence[Document], *, seed: int) -> Split:
    """Hold out about HELD_OUT_SHARE of each domain's bytes, by whole groups of near-duplicates.

    Groups are taken in the order of a hash of `seed` and their first name; the order of `documents` does not matter.
    Where no group fits, as in a domain of one file, the end of the domain's largest training file is held out, from a
    line end on where there is one near, and near-duplicates of that file are left out.

    Near-duplicates are found by MinHash (Broder 1997) over shingles of words; a short text that is quoted in a much
    longer one is not found.

    Raises:
        UsageError: where a domain has no text on one of the sides.
    """
    groups = near_duplicate_groups(_sorted(documents))
    size = _bytes_by_domain(documents)
    held: Counter[str] = Counter()
    train: list[list[Document]] = []
    held_out: list[Document] = []
    for group in sorted(groups, key=lambda group: _order(group[0], seed)):
        added = _bytes_by_domain(group)
        needed = any(held[domain] < HELD_OUT_SHARE * size[domain] for domain in added)
        fits = all(held[domain] + added[domain] <= 1.5 * HELD_OUT_SHARE * size[domain] for domain in added)
        if needed and fits:
            held_out += group
            held += added
        else:
            train.append(group)

    left_out: list[Document] = []
    for domain in sorted(size):
        if held[domain] >= HELD_OUT_SHARE * size[domain] / 2:
            continue
        candidates = ((place, document) for place, group in enumerate(train) for document in group)
        place, largest = max(
            (pair for pair in candidates if pair[1].domain == domain),
            key=lambda pair: len(pair[1].text),
            default=(0, None),
        )
        if largest is None:
            continue
        duplicates = [document for document in train[place] if document is not largest]
        left_out += duplicates
        remaining = size[domain] - _bytes_by_domain(duplicates)[domain]
        head, tail = cut_tail(largest.text, round(HELD_OUT_SHARE * remaining) - held[domain])
        train[place] = _part(largest, head)
        held_out += _part(largest, tail)

    split = Split(_sorted(document for group in train for document in group), _sorted(held_out), _sorted(left_out))
    _check_both_sides(split, size)
    return split


def cut_tail(text: bytes, wanted: int) -> tuple[bytes, bytes]:
    """Cut `text` in two parts, the second of about `wanted` bytes, at most half of the text.

    The cut is after a line end, else after a space, where the second part then is no more than half as long again; else
    between two characters of UTF-8.
    """
    wanted = max(1, min(wanted, len(text) // 2))
    cut = len(text) - wanted
    earliest = max(0, cut - wanted // 2)
    for separator in (b"\n", b" "):
        found = text.rfind(separator, earliest, cut)
        if found >= 0:
            return text[: found + 1], text[found + 1 :]
    while cut > 0 and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return text[:cut], text[cut:]


def near_duplicate_groups(documents: Sequence[Document]) -> list[list[Document]]:
    """Group documents that must stay together: of one `group`, the same text, or near-duplicates.

    Near-duplicates of near-duplicates are in one group. Order is kept, within groups and of their first members.
    """
    parents = list(range(len(documents)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parents[high] = low

    index_of_text: dict[bytes, int] = {}
    index_of_group: dict[str, int] = {}
    for index, document in enumerate(documents):
        join(index, index_of_text.setdefault(document.text, index))
        if document.group is not None:
            join(index, index_of_group.setdefault(document.group, index))

    from datasketch import MinHash, MinHashLSH  # takes half a second to import, and only building a corpus needs it

    lsh = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
    blank = MinHash(num_perm=_PERMUTATIONS, hashfunc=int)  # shingles are hashes already
    signatures: dict[int, MinHash] = {}
    for text, index in index_of_text.items():
        signature = blank.copy()
        shingles = _shingles(text)
        for start in range(0, len(shingles), _BATCH):
            signature.update_batch(shingles[start : start + _BATCH].tolist())
        for candidate in lsh.query(signature):
            if root(candidate) != root(index) and signature.jaccard(signatures[candidate]) >= NEAR_DUPLICATE:
                join(candidate, index)
        lsh.insert(index, signature, check_duplication=False)
        signatures[index] = signature

    groups: dict[int, list[Document]] = {}
    for index, document in enumerate(documents):
        groups.setdefault(root(index), []).append(document)
    return list(groups.values())


def _shingles(text: bytes) -> npt.NDArray[np.uint32]:
    """Hash every five words in a row to 32 bits, each value once; letter case, spaces and punctuation do not count."""
    words = _WORD.findall(text[:_MAX_BYTES].lower())
    if len(words) <= _SHINGLE_WORDS:
        return np.array([zlib.crc32(b" ".join(words) or text.strip())], dtype=np.uint32)
    hashes = np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))
    count = len(words) - _SHINGLE_WORDS + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(_SHINGLE_WORDS):
        mixed = (mixed + hashes[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)  # odd, modulo 2^64
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _order(document: Document, seed: int) -> bytes:
    key = "\0".join((str(seed), document.domain, document.name))
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _part(document: Document, text: bytes) -> list[Document]:
    return [replace(document, text=text)] if is_text(text) else []


def _sorted(documents: Iterable[Document]) -> tuple[Document, ...]:
    return tuple(sorted(documents, key=lambda document: (document.domain, document.name, document.text)))


def _bytes_by_domain(documents: Iterable[Document]) -> Counter[str]:
    count: Counter[str] = Counter()
    for document in documents:
        count[document.domain] += len(document.text)
    return count


def _check_both_sides(split: Split, domains: Iterable[str]) -> None:
    sides = {"training": split.train, "held-out": split.held_out}
    for side, documents in sides.items():
        missing = sorted(set(domains) - {document.domain for document in documents})
        if missing:
            raise UsageError(
                f"Domain {missing[0]!r} has no {side} text of its own once near-duplicates are kept on one side; "
                "give it more text that is not a copy of other text, or leave it out."
            )
