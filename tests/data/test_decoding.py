"""Text in every encoding and container that is read, and the reason for each that is not."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from moekit.core.errors import UsageError
from moekit.data import documents, read_text

TEXT = "Grüße, мир, 世界 🙂\nand a second line\u2028with a separator in it\n"


def zstd_of_two_frames(content: bytes) -> bytes:
    """As parallel packers write it: a frame to be skipped, then several frames."""
    half = len(content) // 2
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    return skipped + zstandard.compress(content[:half]) + zstandard.compress(content[half:])


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 marked": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16 little": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16 big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32 little": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "utf-32 big": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
}
CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".zstd": zstd_of_two_frames,
}
FORMS: dict[str, Callable[[str], str]] = {
    "text.txt": lambda text: text,
    "rows.jsonl": lambda text: json.dumps({"text": text}, ensure_ascii=False) + "\n",
    "rows.json": lambda text: json.dumps([{"text": text}]),
    "rows.csv": lambda text: f'id,text\r\n1,"{text}"\r\n',
    "rows.tsv": lambda text: f'text\tid\n"{text}"\t1\n',
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_text_is_the_same_however_it_is_stored(encoding: str, container: str, form: str, tmp_path: Path) -> None:
    file = tmp_path / "source" / (form + container)
    file.parent.mkdir()
    file.write_bytes(CONTAINERS[container](ENCODINGS[encoding](FORMS[form](TEXT))))
    for source in (file, file.parent):
        told: list[str] = []
        read = read_text([str(source)], say=told.append)
        assert [document.text.decode() for document in read.documents] == [TEXT]
        assert not told


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("<?xml version='1.0' encoding='ISO-8859-1'?>", "latin-1"),
        ('<html><head><meta charset="windows-1252">', "cp1252"),
        ("# -*- coding: koi8-r -*-", "koi8-r"),
        ("# vim: set fileencoding=shift_jis :", "shift_jis"),
    ],
)
def test_a_declared_encoding_is_believed(head: str, encoding: str, tmp_path: Path) -> None:
    words = {"koi8-r": "привет мир", "shift_jis": "日本語の文章"}.get(encoding, "café déjà vu")
    (tmp_path / "file").write_bytes(f"{head}\n{words}\n".encode(encoding))
    (document,) = read_text([str(tmp_path / "file")]).documents
    assert document.text.decode() == f"{head}\n{words}\n"


def packed_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("empty.txt"))
    return buffer.getvalue()


def packed_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "text")
    return buffer.getvalue()


UNREAD = {
    "latin-1": ("café\n".encode("latin-1"), r"not in UTF-8.*iconv"),
    "wrong declaration": (b"# coding: ascii\ncaf\xe9\n", r"not in UTF-8.*iconv"),
    "unknown declaration": (b"# coding: nonsense-9\ncaf\xe9\n", r"not in UTF-8.*iconv"),
    "utf-16 without a mark": ("plain words\n".encode("utf-16-le") * 9, r"UTF-16 without a byte order mark.*UTF-16LE"),
    "half of utf-16": (codecs.BOM_UTF16_LE + b"a\0b", r"not the UTF-16 that its byte order mark says"),
    "a byte 0": (b"a line of text\n" * 20 + b"\0", r"byte 0 in it.*tr -d"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "binary"),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(64), "binary"),
    "noise without a 0": (bytes(range(1, 256)) * 4, "binary"),
    "a PDF": (b"%PDF-1.7\n1 0 obj", "a PDF.*pdftotext"),
    "a ZIP archive": (packed_zip(), "ZIP archive.*unpack"),
    "a tar archive": (packed_tar(), "tar archive.*unpack"),
    "Parquet by another name": (b"PAR1" + bytes(9) + b"PAR1", r"Parquet.*ends in \.parquet"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(9), "lz4.*decompress"),
    "cut gzip": (gzip.compress(TEXT.encode() * 99)[:-9], "gzip, damaged or cut"),
    "damaged gzip": (gzip.compress(TEXT.encode())[:12] + b"xxxxxxxxxxxxxxxxxxxxxx", "gzip, damaged or cut"),
    "cut zstd": (zstandard.compress(TEXT.encode() * 99)[:-9], "zstd, damaged or cut"),
    "damaged zstd": (zstandard.compress(TEXT.encode())[:9] + b"\xff" * 30, "zstd, damaged or cut"),
    "cut xz": (lzma.compress(TEXT.encode() * 99)[:-9], "xz, damaged or cut"),
    "cut bzip2": (bz2.compress(TEXT.encode() * 99)[:-9], "bzip2, damaged or cut"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_is_told_with_its_reason(kind: str, tmp_path: Path) -> None:
    content, reason = UNREAD[kind]
    (tmp_path / "other.txt").write_text("some text\n")
    (tmp_path / "file").write_bytes(content)
    told: list[str] = []
    read = read_text([str(tmp_path)], say=told.append)
    assert [document.text for document in read.documents] == [b"some text\n"]
    (left_out,) = read.left_out
    assert (left_out.texts, left_out.bytes) == (1, len(content))
    assert len(told) == 1
    # Named itself, it is an error that says the same.
    with pytest.raises(UsageError, match=f"(?s)holds no text .*{reason}"):
        read_text([str(tmp_path / "file")])


def test_what_comes_out_of_a_file_in_a_folder_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 10_000)
    (tmp_path / "small.txt").write_text("text\n")
    for suffix, pack in CONTAINERS.items():
        if suffix:
            (tmp_path / f"bomb.txt{suffix}").write_bytes(pack(b"a" * 1_000_000))
            (tmp_path / f"bomb.jsonl{suffix}").write_bytes(pack(b'{"text": "' + b"a" * 1_000_000 + b'"}\n'))
    read = read_text([str(tmp_path)])
    assert [document.text for document in read.documents] == [b"text\n"]
    (left_out,) = read.left_out
    assert (left_out.reason, left_out.texts) == ("over 10.0 kB", 10)
    assert len(read_text([str(tmp_path / "bomb.txt.gz")]).documents[0].text) == 1_000_000
