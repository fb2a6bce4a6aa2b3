"""A file is written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from moekit.core import files
from moekit.core.errors import MoekitError
from moekit.core.formatting import bytes_text, count_text, duration_text


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "old")
    with pytest.raises(TypeError), files.replacing(path) as temporary:
        temporary.write_text("half", encoding=object())  # type: ignore[call-overload]
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["b.txt"]


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.write_text(tmp_path / "written", "x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    with pytest.raises(MoekitError, match=r"disk is full while writing .*b\.txt"), files.replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(1_700_000_000), "1.70 GB"),
        (bytes_text(999_999), "1.00 MB"),
        (count_text(853_120), "853 k"),
        (count_text(46.7e9), "46.7 G"),
        (count_text(12), "12"),
        (duration_text(0.84), "0.8 s"),
        (duration_text(59.6), "1 min 0 s"),
        (duration_text(192), "3 min 12 s"),
        (duration_text(7500), "2 h 5 min"),
    ],
)
def test_figures_read_well(text: str, expected: str) -> None:
    assert text == expected


def test_bytes_of_a_path_that_are_no_text_stand_escaped(tmp_path: Path) -> None:
    files.write_text(tmp_path / "written", f"# {os.fsdecode(bytes([0xFF, 0xFE]))}")
    assert (tmp_path / "written").read_text(encoding="utf-8") == r"# \udcff\udcfe"
