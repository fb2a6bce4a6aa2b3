"""Sources: files and folders of text."""

import os
from pathlib import Path

import pytest

from moekit.core.errors import UsageError
from moekit.data import documents
from moekit.data.documents import Document, is_text, read_sources


def write(path: Path, content: bytes | str = "some text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("content", [b"", b" \n\t", b"a\0b", b"\xff\xfe", b"caf\xe9"])
def test_what_is_no_text(content: bytes) -> None:
    assert not is_text(content)
    with pytest.raises(ValueError, match="no text"):
        Document("d", "n", content)


def test_domains_are_the_top_sub_folders_or_the_folder_itself(tmp_path: Path) -> None:
    root = tmp_path / "library"
    write(root / "readme.md")
    write(root / "code" / "deep" / "main.rs")
    write(root / "Bücher" / "überblick.txt", "schön\n")
    found = {document.name: document.domain for document in read_sources([str(root)])}
    assert found == {
        "library/readme.md": "library",
        "library/code/deep/main.rs": "code",
        "library/Bücher/überblick.txt": "Bücher",
    }


def test_a_single_file_is_a_domain_of_its_own_name(tmp_path: Path) -> None:
    path = write(tmp_path / "alice.txt", "Alice\n")
    assert read_sources([str(path)]) == [Document("alice.txt", "alice.txt", b"Alice\n")]


def test_the_folder_here_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "poems" / "one.txt")
    monkeypatch.chdir(tmp_path / "poems")
    assert [document.domain for document in read_sources(["."])] == ["poems"]


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    with open(folder + b"/\xe9.txt", "wb") as file:
        file.write(b"text\n")
    (document,) = read_sources([str(tmp_path)])
    assert document.domain.encode() == "\ufffd\ufffd".encode()


def test_what_is_skipped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 1000)
    root = tmp_path / "root"
    write(root / "good.txt")
    write(root / ".hidden.txt")
    write(root / ".git" / "config")
    write(root / "a.png", b"\x89PNG\0\0")
    write(root / "latin1.txt", b"caf\xe9")
    write(root / "empty.txt", b"")
    write(root / "large.txt", "x" * 1001)
    (root / "nowhere.txt").symlink_to(tmp_path / "nothing")
    (root / "itself.txt").symlink_to(root / "itself.txt")
    os.mkfifo(root / "pipe")
    told: list[str] = []
    found = read_sources([str(root)], say=told.append)
    assert [document.name for document in found] == ["root/good.txt"]
    assert told == [
        f"Skipped in {root}: 1 empty, 2 hidden, 2 links that lead nowhere, 1 not regular files.",
        f"Left out of {root}: 1 text, 6 B, binary, such as root/a.png.",
        f"Left out of {root}: 1 text, 4 B, not in UTF-8, such as root/latin1.txt; convert it, as with: "
        "iconv -f LATIN1 -t UTF-8 FILE.",
        f"Left out of {root}: 1 text, 1.00 kB, over 1.00 kB, such as root/large.txt; name the file itself as a source "
        "to read it whatever its size.",
    ]


def test_a_named_file_is_read_whatever_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 10)
    assert len(read_sources([str(write(tmp_path / "a.txt", "x" * 100))])) == 1


def test_order_and_repetition_of_sources_do_not_matter(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a" / "1.txt"), write(tmp_path / "b" / "2.txt")
    folders = [str(first.parent), str(second.parent)]
    assert read_sources(folders) == read_sources([*reversed(folders), *folders])
    # the same file under three names is read once
    assert len(read_sources([str(first), str(first.parent), f"{first.parent}/../a"])) == 1


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("corpus/alise.txt", r"did you mean 'corpus/alice.txt'\?"),
        ("corpus/nothing-like-it", "check the path"),
        ("elsewhere/at/all", "check the path"),
        ("", "check the path"),
        ("x" * 5000, "check the path"),
    ],
)
def test_a_missing_path(source: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "corpus" / "alice.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=advice):
        read_sources([source])


def test_sources_without_text(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.txt", "")
    with pytest.raises(UsageError, match=r"empty.txt holds no text \(left out: 1 empty\)"):
        read_sources([str(empty)])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder holds no text; give text in UTF-8"):
        read_sources([str(tmp_path / "folder")])
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        read_sources(["/dev/null"])


def test_a_domain_column_needs_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="'topic' needs rows"):
        read_sources([str(path)], domain_column="topic")


def link(path: Path, to: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def test_links_are_followed(tmp_path: Path) -> None:
    """As the hub's cache lays data sets out: the names are the links', the content lies elsewhere."""
    write(tmp_path / "blobs" / "6f1e", '{"text": "one"}\n')
    write(tmp_path / "blobs" / "77ab", "two\n")
    write(tmp_path / "more" / "deep" / "three.txt", "three\n")
    link(tmp_path / "snapshot" / "train.jsonl", "../blobs/6f1e")
    link(tmp_path / "snapshot" / "notes.txt", tmp_path / "blobs" / "77ab")
    link(tmp_path / "snapshot" / "folder", tmp_path / "more")
    found = {document.name: document.text for document in read_sources([str(tmp_path / "snapshot")])}
    assert found == {
        "snapshot/train.jsonl:0": b"one",
        "snapshot/notes.txt": b"two\n",
        "snapshot/folder/deep/three.txt": b"three\n",
    }
    # Of the blob and the link to it, the link says that it holds rows; and each is read once.
    names = [document.name for document in read_sources([str(tmp_path)])]
    assert sorted(name.removeprefix(f"{tmp_path.name}/") for name in names) == [
        "blobs/77ab",
        "more/deep/three.txt",
        "snapshot/train.jsonl:0",
    ]


@pytest.mark.parametrize("target", [".", "..", "../..", "root/sub", "/"])
def test_links_in_circles_end(target: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "sub" / "a.txt", "one\n")
    write(tmp_path / "beside.txt", "not of the source\n")
    link(root / "sub" / "link", tmp_path / target if target.startswith("root") else target)
    link(root / "self", root / "self")
    link(root / "again", root / "sub")
    assert [document.name for document in read_sources([str(root)])] == ["root/sub/a.txt"]


def test_an_order_of_links_that_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    for name in ("b", "a"):
        link(tmp_path / "root" / name, tmp_path / "real")
    write(tmp_path / "real" / "x.txt")
    assert [document.domain for document in read_sources([str(tmp_path / "root")])] == ["a"]
