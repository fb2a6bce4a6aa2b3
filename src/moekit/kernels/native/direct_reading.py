"""Files that are read around the page cache, where their file system allows that (`native/streaming/`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moekit.core.errors import MoekitError
from moekit.kernels.native.module import native
from moekit.kernels.packed import Bytes


@dataclass(frozen=True)
class FileSpan:
    """Bytes of one of several files."""

    offset: int
    size: int
    file: int = 0


@contextmanager
def reading() -> Iterator[None]:
    """Raise MoekitError where the compiled side, within the block, cannot read a file."""
    try:
        yield
    except native().ReadError as error:
        raise MoekitError(str(error)) from error


class DirectReader:
    """A file that is read around the page cache, where its file system allows that (`direct`).

    Raises:
        MoekitError: where it cannot be opened.
    """

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        with reading():
            self._file = native().DirectFile(str(path), direct)
        self.direct = bool(self._file.direct)

    def read_into(self, offset: int, data_B: Bytes) -> None:
        """Fill an array with as many bytes of the file; raises MoekitError where they cannot be read."""
        with reading():
            self._file.read_into(offset, data_B)


def disk_speed(path: Path, piece: int, *, threads: int = 4, direct: bool = True, seconds: float = 0.2) -> float:
    """Measure the bytes a second at which pieces of so many bytes are read from places all over a file.

    Raises:
        MoekitError: where it cannot be read.
    """
    with reading():
        return float(native().disk_speed(str(path), piece, threads, direct, seconds))


def native_span(module: Any, span: FileSpan | None) -> Any:
    """Make the compiled side's span; None is one of no bytes."""
    return module.Span(0, 0) if span is None else module.Span(span.offset, span.size, span.file)
