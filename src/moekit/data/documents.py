"""Documents: files, folders, rows of tables and Hugging Face datasets become texts with a domain.

Text is bytes of UTF-8. Byte 0 separates documents later on, so no text holds it.
"""

import codecs
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moekit.core.errors import UsageError
from moekit.data import tables
from moekit.data.decoding import EMPTY, HALF_PAIR, NotText, open_unpacked, text_of, too_large
from moekit.data.left_out import LeftOut, Reason, Say, Tally, ignore
from moekit.data.rows import Columns, Row, text_rows
from moekit.data.source_files import ALREADY_READ, UNREADABLE, files_below
from moekit.data.tables import MissingColumn

MAX_FILE_BYTES = 100_000_000
"""A larger file inside a folder is skipped; a file that is named itself is read whatever its size."""

_TEXT_COLUMN = "text"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]*){0,2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        domain: what results are told apart by.
        name: the document's place in the domain.
        text: UTF-8 bytes, not empty and without byte 0 (ValueError otherwise).
        group: documents of one group never stand on both sides of the split; None is a group of its own.
    """

    domain: str
    name: str
    text: bytes
    group: str | None = None

    def __post_init__(self) -> None:
        if not is_text(self.text):
            raise ValueError(f"{self.name!r} is no text: it is empty, holds byte 0, or is not UTF-8")


@dataclass(frozen=True)
class SourceText:
    """What sources hold.

    Attributes:
        documents: the texts.
        left_out: what could not be read as text, and why.
    """

    documents: list[Document]
    left_out: tuple[LeftOut, ...]


def is_text(content: bytes) -> bool:
    """Tell whether `content` is UTF-8 without byte 0 that holds more than white space."""
    if 0 in content or not content.strip():
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def read_sources(
    sources: Sequence[str], *, text_column: str = _TEXT_COLUMN, domain_column: str | None = None, say: Say = ignore
) -> list[Document]:
    """Read all documents of `sources`; as `read_text`, without what was left out."""
    return read_text(sources, text_column=text_column, domain_column=domain_column, say=say).documents


def read_text(
    sources: Sequence[str], *, text_column: str = _TEXT_COLUMN, domain_column: str | None = None, say: Say = ignore
) -> SourceText:
    """Read all documents of `sources`, in an order that does not depend on the order of `sources`.

    A source is one of

    - a file: `.jsonl`, `.ndjson`, `.csv`, `.tsv`, `.parquet`, and `.json` where it holds rows, give a document a row,
      any other file is one document;
    - a folder: every file in it and below, whatever its ending, as long as it is text; links are followed. Hidden
      files, what is no text, and files over MAX_FILE_BYTES are left out;
    - where no such path exists, a dataset of the Hugging Face hub, `owner/name[:config[:split]]`; the split is `train`
      where none is given.

    Files may be compressed by gzip, zstd, bzip2 or xz, and in UTF-8, or in UTF-16, UTF-32 or what they declare where a
    byte order mark or a declaration says so. A byte 0 in a row is taken out of it.

    The domain of a row is its value of `domain_column`, where that is given. Otherwise the domain of a file is the
    top-level sub-folder of the source that it lies in, else the name of the source. Sources that give the same domain
    share it. A file is read once, even where two sources lead to it.

    Args:
        sources: the files, folders and hub datasets.
        text_column: the column of rows that holds the text.
        domain_column: the column of rows that holds the domain.
        say: told what was left out, changed or skipped, and what the user can do about it.

    Raises:
        UsageError: for a source that does not exist or holds no text, for a column that no table has, a row without it
            or with something else than text in it, and where an optional package is missing.
    """
    reader = _Reader(Columns(text=text_column, domain=domain_column))
    documents: list[Document] = []
    left_out: list[LeftOut] = []
    for source in sorted(set(sources)):
        reader.tally, reader.notes = Tally(), Counter()
        found = list(reader.read(source))
        counts = reader.tally.counts()
        if not found and ALREADY_READ not in counts:
            if reader.missing is not None:
                raise reader.missing
            skipped = f" (left out: {reader.tally.summary()})" if counts else ""
            raise UsageError(f"{source} holds no text{skipped}; {reader.tally.ways_on() or 'give text in UTF-8.'}")
        reader.tally.tell(source, say)
        for note, count in sorted(reader.notes.items()):
            say(f"In {source}: {count:,} {note}.")
        documents += found
        left_out += reader.tally.losses()
    if reader.missing is not None and not reader.saw_rows and text_column != _TEXT_COLUMN:
        raise reader.missing
    if domain_column is not None and documents and not reader.saw_rows:
        raise UsageError(
            f"The domain column {domain_column!r} needs rows: give JSON lines, CSV, Parquet or a hub dataset, or leave "
            "it out and let sub-folders be the domains."
        )
    return SourceText(documents, tuple(left_out))


@dataclass
class _Reader:
    """Reads source after source, and counts what it leaves out on the way.

    Attributes:
        columns: of tables.
        tally: what was left out of the source.
        notes: what was done to its text, and how often.
        saw_rows: whether a table had the columns.
        missing: the error of the first table in a folder that lacks a column.
    """

    columns: Columns
    tally: Tally = field(default_factory=Tally)
    notes: Counter[str] = field(default_factory=Counter)
    saw_rows: bool = False
    missing: MissingColumn | None = None
    _read: set[str] = field(default_factory=set)

    def read(self, source: str) -> Iterator[Document]:
        """Yield the documents of a source."""
        path = Path(source)
        if os.path.isdir(source):
            yield from self._folder(path)
        elif os.path.exists(source):
            if not path.is_file():
                raise UsageError(f"{source} is neither a file nor a folder; give text in one of the two.")
            yield from self._file(path, _own_name(path), _own_name(path), limit=None)
        elif _looks_like_hub_id(source):
            yield from self._rows(text_rows(tables.hub_rows(source, self.columns.names), self.columns), source, source)
        else:
            raise UsageError(_missing(source))

    def _folder(self, root: Path) -> Iterator[Document]:
        own = _own_name(root)

        def domain_and_name(path: Path) -> tuple[str, str]:
            relative = path.relative_to(root)
            domain = _printable(relative.parts[0]) if len(relative.parts) > 1 else own
            return domain, f"{own}/{_printable(relative.as_posix())}"

        for path in files_below(root, lambda path, reason: self.tally.add(own, reason, 0, _printable(path.name))):
            domain, name = domain_and_name(path)
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                self.tally.add(domain, too_large(MAX_FILE_BYTES), size, name)
                continue
            yield from self._file(path, domain, name, limit=MAX_FILE_BYTES)

    def _file(self, path: Path, domain: str, name: str, limit: int | None) -> Iterator[Document]:
        """Yield the documents of a file; with a limit it is one of a folder, which the rest does not depend on."""
        real = os.path.realpath(path)
        size = path.stat().st_size
        if real in self._read:
            self.tally.add(domain, ALREADY_READ, 0, name)
            return
        self._read.add(real)
        try:
            # All or nothing: a table that turns out damaged in its middle leaves no half of it behind.
            yield from list(self._content(path, domain, name, limit))
        except NotText as error:
            self.tally.add(domain, error.reason, size, name)
        except PermissionError:
            self.tally.add(domain, UNREADABLE, size, name)
        except MissingColumn as error:
            if limit is None:
                raise
            self.missing = self.missing or error
            absent = Reason(
                f"tables without a column {self.columns.text!r}", "name the column that holds the text (--text-column)"
            )
            self.tally.add(domain, absent, size, name)

    def _content(self, path: Path, domain: str, name: str, limit: int | None) -> Iterator[Document]:
        if form := tables.table_form(path):
            with tables.table_rows(path, self.columns.names, limit) as records:
                if records is not None:
                    yield from self._rows(text_rows(records, self.columns), domain, name)
                    return
            self.notes[f"{form} file(s) without rows, read as text like any other"] += 1
        with open_unpacked(path, limit) as file:
            content = file.read()
        yield Document(domain, name, text_of(content))

    def _rows(self, found: Iterable[Row], domain: str, name: str) -> Iterator[Document]:
        for number, row in enumerate(found):
            self.saw_rows = True
            text, place, own = row.text.removeprefix(codecs.BOM_UTF8), f"{name}:{number}", row.domain or domain
            if 0 in text:
                text = text.replace(b"\0", b"")
                self.notes["row(s) held a byte 0, which was taken out"] += 1
            if is_text(text):
                yield Document(own, place, text)
            else:
                self.tally.add(own, HALF_PAIR if text.strip() else EMPTY, len(text), place)


def _own_name(path: Path) -> str:
    return _printable(path.resolve().name or "text")


def _printable(name: str) -> str:
    """Make a file's name valid Unicode: names on disk are bytes, and may be anything."""
    return os.fsencode(name).decode("utf-8", "replace")


def _looks_like_hub_id(source: str) -> bool:
    # a path whose folder exists here is a misspelt path, not a dataset
    return _HUB_ID.fullmatch(source) is not None and not Path(source).parent.exists()


def _missing(source: str) -> str:
    folder, name = os.path.split(source.rstrip("/"))
    present = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    nearest = difflib.get_close_matches(name, present, n=1)
    advice = f"did you mean {os.path.join(folder, nearest[0])!r}?" if nearest else "check the path."
    return f"There is no file or folder {source!r}: {advice}"
