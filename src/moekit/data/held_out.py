"""The split into training and held-out text: by whole files, with near-duplicates on one side only."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from moekit.core.errors import UsageError
from moekit.data.documents import Document, is_text
from moekit.data.left_out import Reason, named
from moekit.data.near_duplicates import NearDuplicates
from moekit.data.passages import without_passages_of

HELD_OUT_SHARE = 0.1
"""Of each domain's bytes; where whole files are held out, it comes to between half and 1.5 times this share."""

COPIES_OF_CUT = Reason("near-duplicates of a file that is cut into training and held-out text")
LIKE_HELD_OUT = Reason("near-duplicates of held-out text")
PASSAGES = Reason("passages that stand in the held-out end of their file as well")
REPEATS = Reason("repeats itself: its held-out end stands in its training text as well")
ONE_SIDED = Reason("of a domain with too little text for both training and held-out text")

_LEAST_LEFT = 0.1
"""The share of a file that must be left without what its end repeats; of one that repeats itself throughout, all is."""


@dataclass(frozen=True)
class Dropped:
    """A document, or a part of one, that belongs on neither side."""

    domain: str
    name: str
    bytes: int
    reason: Reason


@dataclass(frozen=True)
class Split:
    """Documents on the two sides of the split.

    Attributes:
        train: to be trained on.
        held_out: to be measured on.
        left_out: what belongs on neither side; with the reason REPEATS, what is on both, and no bytes.
    """

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    left_out: tuple[Dropped, ...]


def split_documents(documents: Sequence[Document], *, seed: int) -> Split:
    """Hold out about HELD_OUT_SHARE of each domain's bytes, by whole groups of near-duplicates.

    Groups (`moekit.data.near_duplicates`) are taken in the order of a hash of `seed` and their first name; the order of
    `documents` does not matter. Where no group fits, as in a domain of one file, the end of a large training file that
    has few near-duplicates is held out, from a line end on where there is one near; its near-duplicates are left out,
    and so is what its beginning has in common with that end. What is otherwise near a held-out document is left out,
    and so are domains that have no text on one of the sides.

    Raises:
        UsageError: where no domain has text on both sides.
    """
    split = _Splitting(_sorted(documents), seed)
    split.hold_out_groups()
    split.cut_files()
    split.drop_what_is_like_held_out()
    split.drop_one_sided_domains()
    return Split(
        _sorted(document for group in split.train for document in group),
        _sorted(split.held_out),
        tuple(sorted(split.left_out, key=lambda dropped: (dropped.domain, dropped.name, dropped.reason.text))),
    )


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


class _Splitting:
    """The documents while they are being split, step by step."""

    def __init__(self, documents: Sequence[Document], seed: int) -> None:
        self.documents = documents
        self.near = NearDuplicates(documents)
        self.size = _bytes_by_domain(documents)
        groups = [[documents[index] for index in group] for group in self.near.groups]
        self.pending = sorted(groups, key=lambda group: _order(group[0], seed))
        self.held: Counter[str] = Counter()
        self.train: list[list[Document]] = []
        self.held_out: list[Document] = []
        self.left_out: list[Dropped] = []

    def hold_out_groups(self) -> None:
        """Put each group on one of the sides."""
        size, held = self.size, self.held
        for group in self.pending:
            added = _bytes_by_domain(group)
            needed = any(held[domain] < HELD_OUT_SHARE * size[domain] for domain in added)
            fits = all(held[domain] + added[domain] <= 1.5 * HELD_OUT_SHARE * size[domain] for domain in added)
            if needed and fits:
                self.held_out += group
                held += added
            else:
                self.train.append(group)

    def cut_files(self) -> None:
        """Cut a file of each domain that has less than half of its share on the held-out side."""
        for domain in sorted(self.size):
            if self.held[domain] < HELD_OUT_SHARE * self.size[domain] / 2:
                self._cut_file_of(domain)

    def _cut_file_of(self, domain: str) -> None:
        candidates = (
            (place, document, len(document.text) - sum(len(other.text) for other in group if other is not document))
            for place, group in enumerate(self.train)
            for document in group
            if document.domain == domain
        )
        place, document, _ = max(candidates, key=lambda found: (found[2], len(found[1].text)), default=(0, None, 0))
        if document is None:
            return
        copies = [other for other in self.train[place] if other is not document]
        self._drop(copies, COPIES_OF_CUT)
        remaining = self.size[domain] - _bytes_by_domain(copies)[domain]
        head, tail = cut_tail(document.text, round(HELD_OUT_SHARE * remaining) - self.held[domain])
        self.train[place] = self._without_passages(document, head, tail)
        self.held_out += _part(document, tail)

    def _without_passages(self, document: Document, head: bytes, tail: bytes) -> list[Document]:
        """Give the parts of a file's beginning that its end does not have as well."""
        pieces = without_passages_of(tail, head)
        left = sum(map(len, pieces))
        if left == len(head):
            return _part(document, head)
        if left < _LEAST_LEFT * len(head):
            self.left_out.append(Dropped(document.domain, document.name, 0, REPEATS))
            return _part(document, head)
        self.left_out.append(Dropped(document.domain, document.name, len(head) - left, PASSAGES))
        return _part(document, b"\n".join(pieces))

    def drop_what_is_like_held_out(self) -> None:
        """Leave out of training what is near a held-out document without being of its group."""
        place = {id(document): index for index, document in enumerate(self.documents)}
        held = [place[id(document)] for document in self.held_out if id(document) in place]
        whole = [document for group in self.train for document in group if id(document) in place]
        found = self.near.like(held, [place[id(document)] for document in whole])
        dropped = {id(self.documents[index]) for index in found}
        self._drop((document for document in whole if id(document) in dropped), LIKE_HELD_OUT)
        self.train = [[document for document in group if id(document) not in dropped] for group in self.train]

    def drop_one_sided_domains(self) -> None:
        """Leave out the domains that have text on one side alone."""
        sides = {"training": {document.domain for group in self.train for document in group}}
        sides["held-out"] = {document.domain for document in self.held_out}
        missing = {domain for domain in self.size for found in sides.values() if domain not in found}
        if len(missing) == len(self.size):
            side = next(side for side, found in sides.items() if missing - found)
            whose = f"Domain {named(missing)} has" if len(missing) == 1 else f"Domains {named(missing)} have"
            raise UsageError(
                f"{whose} no {side} text left once near-duplicates are kept on one side; give more text that is not a "
                "copy of other text."
            )
        dropped = [
            document
            for document in (*(document for group in self.train for document in group), *self.held_out)
            if document.domain in missing
        ]
        self._drop(dropped, ONE_SIDED)
        self.train = [[document for document in group if document.domain not in missing] for group in self.train]
        self.held_out = [document for document in self.held_out if document.domain not in missing]

    def _drop(self, documents: Iterable[Document], reason: Reason) -> None:
        self.left_out += [Dropped(each.domain, each.name, len(each.text), reason) for each in documents]


def _order(document: Document, seed: int) -> bytes:
    key = "\0".join((str(seed), document.domain, document.name))
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _part(document: Document, text: bytes) -> list[Document]:
    return [replace(document, text=text)] if is_text(text) else []


def _key(document: Document) -> tuple[str, str, bytes]:
    return document.domain, document.name, document.text


def _sorted(documents: Iterable[Document]) -> tuple[Document, ...]:
    return tuple(sorted(documents, key=_key))


def _bytes_by_domain(documents: Iterable[Document]) -> Counter[str]:
    count: Counter[str] = Counter()
    for document in documents:
        count[document.domain] += len(document.text)
    return count
