"""From a file's bytes to text: compressed files are unpacked, declared encodings decoded, all else gets its reason."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from moekit.core.formatting import bytes_text
from moekit.data.left_out import Reason

EMPTY = Reason("empty", is_loss=False)
NOT_UTF_8 = Reason("not in UTF-8", "convert it, as with: iconv -f LATIN1 -t UTF-8 FILE")
UTF_16_UNMARKED = Reason("in UTF-16 without a byte order mark", "convert it, as with: iconv -f UTF-16LE -t UTF-8 FILE")
BYTE_0 = Reason("with a byte 0 in it", "take it out, as with: tr -d '\\000'")
BINARY = Reason("binary")
HALF_PAIR = Reason("with half of a surrogate pair, which is no character")

_BYTE_ORDER_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_UNPACK = "unpack it"
_SIGNATURES = (  # where it stands, the bytes, what such a file is, what to do with it
    (0, b"%PDF-", "a PDF", "take its text out, as with pdftotext"),
    (0, b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it"),
    (0, b"\x1f\x9d", "compressed by compress", "decompress it"),
    (0, b"PAR1", "a Parquet file", "name it so that it ends in .parquet"),
    (0, b"ARROW1", "an Arrow file", "write it as Parquet"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", "save it as text"),
    (0, b"SQLite format 3\0", "a SQLite data base", "write its text as JSON lines"),
)

_DECLARATION = re.compile(rb"(?:coding|charset)\s*[:=]\s*[\"']?([A-Za-z0-9][\w.:-]*)")
_DECLARED_WITHIN = 1024
"""Bytes from the start within which a declaration of the encoding stands, as in HTML (others want it earlier)."""


class NotText(Exception):
    """A file or a part of it is not text that can be read; says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


def open_unpacked(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a file for reading, unpacked where it is compressed by gzip, zstd, bzip2 or xz; its content decides.

    Args:
        path: the file.
        limit: the most bytes that may come out of it, unpacked; None for any number.

    Raises:
        OSError: where it cannot be read.
        NotText: from reading, where it is damaged, or more comes out than `limit`.
    """
    file = path.open("rb")
    head = file.read(8)
    file.seek(0)
    for signature, name, unpack in _CONTAINERS:
        if head.startswith(signature):
            return io.BufferedReader(_Unpacked(unpack(file), file, name, limit), 1 << 16)
    return file


def open_utf8(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a file of text in UTF-8, UTF-16 or UTF-32 as UTF-8 without a byte order mark, unpacked; see `open_unpacked`.

    Other encodings are not looked for: what is not UTF-8 without a byte order mark comes out as it is.

    Raises:
        OSError: where it cannot be read.
        NotText: where it has a byte order mark and is not what that says, and as `open_unpacked`.
    """
    file = open_unpacked(path, limit)
    head = file.peek(4) if isinstance(file, io.BufferedReader) else b""
    mark, encoding = _marked(head)
    if encoding is None:
        return file
    file.read(len(mark))
    if encoding == "utf-8":
        return file
    with file:
        return io.BytesIO(_decoded(file.read(), encoding).encode())


def text_of(content: bytes) -> bytes:
    """Turn a document's bytes into text: UTF-8 without a byte order mark and without byte 0.

    UTF-16 and UTF-32 are read where a byte order mark says so, other encodings where the document declares them, as
    XML, HTML and source code do.

    Raises:
        NotText: for all else, with the reason.
    """
    mark, encoding = _marked(content)
    if encoding is not None:
        text = _decoded(content[len(mark) :], encoding).encode()
    else:
        text = content
        for place, signature, what, way_on in _SIGNATURES:
            if content.startswith(signature, place):
                raise NotText(Reason(what, way_on))
    if 0 in text:
        raise NotText(_why_zeros(text))
    if not text.strip():
        raise NotText(EMPTY)
    if encoding is None and not _is_utf_8(text):
        text = _declared(text)
    return text


def _marked(head: bytes) -> tuple[bytes, str | None]:
    return next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), (b"", None))


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-le").removesuffix("-be").upper()
        raise NotText(Reason(f"not the {name} that its byte order mark says", "write it anew in UTF-8")) from error


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _declared(content: bytes) -> bytes:
    """Decode by the encoding that the first bytes declare."""
    found = _DECLARATION.search(content[:_DECLARED_WITHIN])
    if found is None:
        controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in content[:_DECLARED_WITHIN])
        raise NotText(BINARY if controls * 50 > min(len(content), _DECLARED_WITHIN) else NOT_UTF_8)
    try:
        return content.decode(found[1].decode()).encode()
    except (LookupError, UnicodeError) as error:
        raise NotText(NOT_UTF_8) from error


def _why_zeros(content: bytes) -> Reason:
    """Say what content with a byte 0 in it is."""
    sample = content[:4096]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    # Text in UTF-16 has nearly all of its zeros, those of the commonest letters, in the same half of each pair.
    if max(even, odd) * 4 > len(sample) and min(even, odd) * 20 < max(even, odd):
        return UTF_16_UNMARKED
    rare = content.count(0) * 100 < len(content)
    return BYTE_0 if rare and _is_utf_8(content) else BINARY


def too_large(limit: int) -> Reason:
    """Say that a file has more bytes than are read of one inside a folder."""
    return Reason(f"over {bytes_text(limit)}", "name the file itself as a source to read it whatever its size")


class _Unpacked(io.RawIOBase):
    """What comes out of a compressed stream; an error of the format is NotText."""

    def __init__(self, stream: Any, file: BinaryIO, name: str, limit: int | None) -> None:
        self._stream, self._file, self._name, self._limit, self._read = stream, file, name, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        try:
            content = self._stream.read(len(buffer)) or b""
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            why = Reason(f"{self._name}, damaged or cut", "fetch or pack it anew")
            raise NotText(why) from error
        self._read += len(content)
        if self._limit is not None and self._read > self._limit:
            raise NotText(too_large(self._limit))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """What comes out of frames of zstd; a frame that is cut is an EOFError."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard  # only who reads such a file needs it

        self._file, self._error = file, zstandard.ZstdError
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame = self._unpacker.decompressobj()
        self._within = False
        self._content = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes, which are some unless it is the end."""
        while not self._content:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._within = self._unpacker.decompressobj(), False
            # Small pieces: what comes out of one is many times as large.
            packed = packed or self._file.read(1 << 13)
            if not packed:
                if self._within:
                    raise EOFError("the last frame has no end")
                return b""
            self._within = True
            try:
                self._content = memoryview(self._frame.decompress(packed))
            except self._error as error:
                raise EOFError(str(error)) from error
        taken, self._content = self._content[:size], self._content[size:]
        return bytes(taken)


_CONTAINERS: tuple[tuple[bytes, str, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", "compressed by gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", "compressed by bzip2", bz2.BZ2File),
    (b"\xfd7zXZ\0", "compressed by xz", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _Zstandard),
    *((bytes((0x50 + kind, 0x2A, 0x4D, 0x18)), "compressed by zstd", _Zstandard) for kind in range(16)),
)
"""How a compressed file begins, what it is, and what reads it; a file of zstd may begin with a frame to be skipped."""
