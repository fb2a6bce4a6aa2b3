"""A corpus: train and held-out bytes of each domain, in memory or mapped from a folder."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from moekit.config import BYTE_VOCAB_SIZE
from moekit.core import files
from moekit.core.errors import MoekitError, UsageError
from moekit.data.documents import Document, read_text
from moekit.data.embedded import embedded_documents
from moekit.data.held_out import split_documents
from moekit.data.left_out import LeftOut, Say, Tally, ignore
from moekit.data.tokenizers import SEPARATOR

Bytes = npt.NDArray[np.uint8]
Tokens = npt.NDArray[np.uint8] | npt.NDArray[np.uint32]
"""Bytes, or ids where a tokenizer has been over them."""

_CHUNK = 1 << 22
_MANIFEST = "corpus.json"


@dataclass(frozen=True, eq=False)
class DomainText:
    """One domain's text, SEPARATOR before each document; a file that was cut in two counts on both sides."""

    name: str
    train: Tokens
    held_out: Tokens
    train_files: int
    held_out_files: int

    @property
    def train_bytes(self) -> int:
        """The bytes of training text, separators included."""
        return len(self.train)

    @property
    def held_out_bytes(self) -> int:
        """The bytes of held-out text, separators included."""
        return len(self.held_out)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text in domains, sorted by name.

    Attributes:
        sha256: the hash of the domains' names and both sides' bytes, in hexadecimal.
        left_out: what was given and is in none of the domains, and why.
    """

    name: str
    sha256: str
    domains: tuple[DomainText, ...]
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def of(cls, name: str, domains: Sequence[DomainText], left_out: Sequence[LeftOut] = ()) -> Self:
        """Make a corpus of domains, with the hash of their text."""
        sha256 = _corpus_sha256((text.name, _sha256(text.train), _sha256(text.held_out)) for text in domains)
        return cls(name, sha256, tuple(domains), tuple(left_out))

    def without(self, tally: Tally, domains: Iterable[str]) -> Self:
        """Make the corpus without some domains, which `tally` counts."""
        names = set(domains)
        kept = [text for text in self.domains if text.name not in names]
        return self.of(self.name, kept, (*self.left_out, *tally.losses()))

    def unigram_bits_per_byte(self, domain: str | None = None) -> float:
        """Score the held-out text by the add-one smoothed byte frequencies of the training text, in bits per byte.

        Each domain is scored by its own frequencies, over all 256 bytes; separators are not scored. Without `domain`,
        the result is the mean over domains, each weighing the same.

        Raises:
            KeyError: for an unknown domain.
        """
        if domain is None:
            return float(np.mean([_unigram_bits_per_byte(text) for text in self.domains]))
        return _unigram_bits_per_byte({text.name: text for text in self.domains}[domain])

    def byte_frequencies(self) -> npt.NDArray[np.float64]:
        """Compute how often training meets each of the 256 bytes: they add up to 1, each domain weighing the same."""
        counts = [_byte_counts(text.train) for text in self.domains]
        frequencies: npt.NDArray[np.float64] = np.mean([each / each.sum() for each in counts], axis=0)
        return frequencies

    def save(self, folder: Path) -> None:
        """Write the corpus into `folder`: `corpus.json` last, beside two files of bytes for each domain."""
        records = []
        for index, text in enumerate(self.domains):
            for side, content in (("train", text.train), ("held_out", text.held_out)):
                with files.replacing(folder / _file_name(index, side)) as temporary:
                    content.tofile(temporary)
            records.append(
                _SavedDomain(
                    name=text.name,
                    train=_SavedText(bytes=len(text.train), sha256=_sha256(text.train), files=text.train_files),
                    held_out=_SavedText(
                        bytes=len(text.held_out), sha256=_sha256(text.held_out), files=text.held_out_files
                    ),
                )
            )
        saved = _SavedCorpus(name=self.name, sha256=self.sha256, domains=records, left_out=list(self.left_out))
        files.write_text(folder / _MANIFEST, saved.model_dump_json(indent=1) + "\n")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the corpus that `save` wrote into `folder`, its text mapped from the files, read-only.

        All of it is read once to check it.

        Raises:
            MoekitError: naming the file, where one is missing or changed.
        """
        manifest = folder / _MANIFEST
        try:
            saved = _SavedCorpus.model_validate_json(manifest.read_bytes())
        except FileNotFoundError as error:
            raise MoekitError(f"{folder} holds no corpus: there is no {_MANIFEST} in it; save it anew.") from error
        except ValidationError as error:
            raise MoekitError(f"{manifest} is damaged or of another version; save the corpus anew.") from error
        domains = tuple(
            DomainText(
                name=record.name,
                train=_map(folder / _file_name(index, "train"), record.train),
                held_out=_map(folder / _file_name(index, "held_out"), record.held_out),
                train_files=record.train.files,
                held_out_files=record.held_out.files,
            )
            for index, record in enumerate(saved.domains)
        )
        if saved.sha256 != _corpus_sha256((r.name, r.train.sha256, r.held_out.sha256) for r in saved.domains):
            raise MoekitError(f"{manifest} was changed after it was written; save the corpus anew.")
        return cls(saved.name, saved.sha256, domains, tuple(saved.left_out))


def build_corpus(
    documents: Sequence[Document],
    *,
    name: str,
    seed: int = 0,
    say: Say = ignore,
    left_out: Sequence[LeftOut] = (),
) -> Corpus:
    """Split `documents` by `seed` and join each side of each domain; the order of `documents` does not matter.

    Args:
        documents: the texts.
        name: the corpus's name.
        seed: the seed of the split.
        say: told what was left out, if anything (see `split_documents`).
        left_out: what was not read.

    Raises:
        UsageError: where there are no documents, or no domain has text on both sides.
    """
    if not documents:
        raise UsageError("There is no text to build a corpus from; give a file, a folder or a hub dataset.")
    split = split_documents(documents, seed=seed)
    tally = Tally()
    for dropped in split.left_out:
        tally.add(dropped.domain, dropped.reason, dropped.bytes, dropped.name)
    tally.tell(name, say)
    train, held_out = _by_domain(split.train), _by_domain(split.held_out)
    domains = tuple(
        DomainText(
            name=domain,
            train=_joined(train[domain]),
            held_out=_joined(held_out[domain]),
            train_files=len(train[domain]),
            held_out_files=len(held_out[domain]),
        )
        for domain in sorted(train)
    )
    return Corpus.of(name, domains, (*left_out, *tally.losses()))


def load_corpus(
    sources: Sequence[str] | None = None,
    *,
    text_column: str = "text",
    domain_column: str | None = None,
    seed: int = 0,
    say: Say = ignore,
) -> Corpus:
    """Build the corpus of `sources`, as `read_text` reads them, or the embedded one where there are none.

    It raises what `read_text` and `build_corpus` raise.
    """
    if not sources:
        return build_corpus(embedded_documents(), name="embedded", seed=seed, say=say)
    read = read_text(sources, text_column=text_column, domain_column=domain_column, say=say)
    name = ", ".join(sorted(set(sources)))
    return build_corpus(read.documents, name=name, seed=seed, say=say, left_out=read.left_out)


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _SavedText(_Saved):
    bytes: int
    sha256: str
    files: int


class _SavedDomain(_Saved):
    name: str
    train: _SavedText
    held_out: _SavedText


class _SavedCorpus(_Saved):
    schema_version: Literal[1] = 1
    name: str
    sha256: str
    domains: list[_SavedDomain]
    left_out: list[LeftOut] = []


def _file_name(index: int, side: str) -> str:
    # by number: a domain's name may hold anything, `../` included
    return f"{index}.{side}.bin"


def _map(path: Path, saved: _SavedText) -> Bytes:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise MoekitError(f"{path} is missing; save the corpus anew.") from error
    if size != saved.bytes or size == 0:
        raise MoekitError(f"{path} holds {size} bytes where {saved.bytes} were written; save the corpus anew.")
    content: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
    if _sha256(content) != saved.sha256:
        raise MoekitError(f"{path} was changed after it was written; save the corpus anew.")
    return content


def _joined(documents: Iterable[Document]) -> Bytes:
    text = b"".join(part for document in documents for part in (bytes((SEPARATOR,)), document.text))
    return np.frombuffer(text, dtype=np.uint8)


def _by_domain(documents: Iterable[Document]) -> dict[str, list[Document]]:
    found: defaultdict[str, list[Document]] = defaultdict(list)
    for document in documents:
        found[document.domain].append(document)
    return found


def _sha256(content: Tokens) -> str:
    return hashlib.sha256(content.data).hexdigest()


def _corpus_sha256(domains: Iterable[tuple[str, str, str]]) -> str:
    digest = hashlib.sha256()
    for name, train, held_out in domains:
        encoded = name.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded + bytes.fromhex(train) + bytes.fromhex(held_out))
    return digest.hexdigest()


def _unigram_bits_per_byte(text: DomainText) -> float:
    train, held_out = _byte_counts(text.train), _byte_counts(text.held_out)
    bits = -np.log2((train + 1) / (train.sum() + BYTE_VOCAB_SIZE))
    held_out[SEPARATOR] = 0
    return float((held_out * bits).sum() / held_out.sum())


def _byte_counts(text: Tokens) -> npt.NDArray[np.int64]:
    counts = np.zeros(BYTE_VOCAB_SIZE, dtype=np.int64)
    # in chunks: bincount makes eight bytes of each
    for start in range(0, len(text), _CHUNK):
        counts += np.bincount(text[start : start + _CHUNK], minlength=BYTE_VOCAB_SIZE)
    return counts
