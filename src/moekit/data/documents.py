"""Documents: files, folders, rows of tables and Hugging Face datasets become texts with a domain.

Text is bytes. Byte 0 separates documents later on, so whatever holds it is binary and is not text.
"""

import difflib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moekit.core.errors import UsageError
from moekit.core.formatting import bytes_text
from moekit.data import rows

MAX_FILE_BYTES = 100_000_000
"""A larger file inside a folder is skipped; a file that is named itself is read whatever its size."""

_ALREADY_READ = "already read"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]*){0,2}", re.ASCII)


@dataclass(frozen=True)
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


def is_text(content: bytes) -> bool:
    """Tell whether `content` is UTF-8 without byte 0 that holds more than white space."""
    if 0 in content or not content.strip():
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def ignore(message: str) -> None:
    """Ignore a message: the default for functions that may have something to tell the user."""


def read_sources(
    sources: Sequence[str],
    *,
    text_column: str = "text",
    domain_column: str | None = None,
    say: Callable[[str], None] = ignore,
) -> list[Document]:
    """Read all documents of `sources`, in an order that does not depend on the order of `sources`.

    A source is one of

    - a file: `.jsonl`, `.ndjson` and `.parquet` give a document a row, any other file is one document;
    - a folder: every file in it and below, whatever its ending, as long as it is text. Hidden files, symbolic links
      (what they lead to inside the folder is read in its own place), binary files, empty files and files over
      MAX_FILE_BYTES are skipped, and `say` is told how many of each;
    - where no such path exists, a dataset of the Hugging Face hub, `owner/name[:config[:split]]`; the split is `train`
      where none is given.

    The domain of a row is its value of `domain_column`, where that is given. Otherwise the domain of a file is the
    top-level sub-folder of the source that it lies in, else the name of the source. Sources that give the same domain
    share it. A file is read once, even where two sources lead to it.

    Args:
        sources: the files, folders and hub datasets.
        text_column: the column of rows that holds the text.
        domain_column: the column of rows that holds the domain.
        say: told what was skipped.

    Raises:
        UsageError: for a source that does not exist or holds no text, for a row without the column or with something
            else than text in it, and where an optional package is missing.
    """
    columns = rows.Columns(text=text_column, domain=domain_column)
    reader = _Reader(columns)
    documents: list[Document] = []
    for source in sorted(set(sources)):
        reader.skipped.clear()
        found = list(reader.read(source))
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(reader.skipped.items()))
        if not found and not reader.skipped[_ALREADY_READ]:
            raise UsageError(
                f"{source} holds no text" + (f" (skipped: {skipped})" if skipped else "") + "; give UTF-8 text."
            )
        if skipped:
            say(f"Skipped in {source}: {skipped}.")
        documents += found
    if domain_column is not None and documents and not reader.saw_rows:
        raise UsageError(
            f"The domain column {domain_column!r} needs rows: give JSON lines, Parquet or a hub dataset, or leave "
            "it out and let sub-folders be the domains."
        )
    return documents


@dataclass
class _Reader:
    """Reads source after source, and counts what it skips on the way."""

    columns: rows.Columns
    skipped: Counter[str] = field(default_factory=Counter)
    saw_rows: bool = False
    _read: set[Path] = field(default_factory=set)

    def read(self, source: str) -> Iterator[Document]:
        """Yield the documents of a source."""
        path = Path(source)
        if os.path.isdir(source):
            yield from self._folder(path)
        elif os.path.exists(source):
            if not path.is_file():
                raise UsageError(f"{source} is neither a file nor a folder; give text in one of the two.")
            yield from self._file(path, _own_name(path), _own_name(path))
        elif _looks_like_hub_id(source):
            yield from self._rows(rows.hub_rows(source, self.columns), source, source)
        else:
            raise UsageError(_missing(source))

    def _folder(self, root: Path) -> Iterator[Document]:
        own = _own_name(root)

        def unreadable(_: OSError) -> None:
            self.skipped["unreadable"] += 1

        for folder, subfolders, names in os.walk(root, onerror=unreadable):
            here = Path(folder)
            subfolders[:] = sorted(name for name in subfolders if self._wanted(here / name))
            for name in sorted(names):
                path = here / name
                if self._wanted(path) and self._fits(path):
                    relative = path.relative_to(root)
                    domain = _printable(relative.parts[0]) if len(relative.parts) > 1 else own
                    yield from self._file(path, domain, f"{own}/{_printable(relative.as_posix())}")

    def _wanted(self, path: Path) -> bool:
        reason = "hidden" if path.name.startswith(".") else "symbolic links" if path.is_symlink() else None
        if reason:
            self.skipped[reason] += 1
        return reason is None

    def _fits(self, path: Path) -> bool:
        status = path.stat()
        reason = (
            "not regular files"
            if not stat.S_ISREG(status.st_mode)
            else f"over {bytes_text(MAX_FILE_BYTES)}"
            if status.st_size > MAX_FILE_BYTES
            else None
        )
        if reason:
            self.skipped[reason] += 1
        return reason is None

    def _file(self, path: Path, domain: str, name: str) -> Iterator[Document]:
        resolved = path.resolve()
        if resolved in self._read:
            self.skipped[_ALREADY_READ] += 1
            return
        self._read.add(resolved)
        suffix = path.suffix.lower()
        try:
            if suffix in (".jsonl", ".ndjson"):
                yield from self._rows(rows.jsonl_rows(path, self.columns), domain, name)
            elif suffix == ".parquet":
                yield from self._rows(rows.parquet_rows(path, self.columns), domain, name)
            else:
                yield from self._text(path.read_bytes(), domain, name)
        except PermissionError:
            self.skipped["unreadable"] += 1

    def _rows(self, found: Iterator[rows.Row], domain: str, name: str) -> Iterator[Document]:
        self.saw_rows = True
        for number, row in enumerate(found):
            yield from self._text(row.text, row.domain or domain, f"{name}:{number}")

    def _text(self, content: bytes, domain: str, name: str) -> Iterator[Document]:
        if is_text(content):
            yield Document(domain, name, content)
        else:
            self.skipped["binary" if content.strip() else "empty"] += 1


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
