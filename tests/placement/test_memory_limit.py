"""What control groups leave, as the files of both versions say it."""

from pathlib import Path

import pytest

from moekit.placement.memory_limit import free_bytes, left_in_groups


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    of_limit, of_use, of_cache = names
    (folder / of_limit).write_text(f"{limit}\n")
    (folder / of_use).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{of_cache} {cache}\nslab 7\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_version_2_with_a_limit_further_up(tmp_path: Path) -> None:
    """A container's group has none of its own; the pod's above it has one, and the root has no files."""
    mine = tmp_path / "mine"
    mine.write_text("0::/pod/container\n")
    group(tmp_path / "fs/pod/container", V2, "max", 50, 0)
    group(tmp_path / "fs/pod", V2, "1000", 400, 100)
    assert list(left_in_groups(tmp_path / "fs", mine)) == [700]


def test_version_1_among_other_controllers(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("5:cpu,cpuacct:/a\n3:memory:/a/b\n1:name=systemd:/a\n")
    group(tmp_path / "fs/memory/a/b", V1, "2000", 500, 0)
    group(tmp_path / "fs/memory/a", V1, "9223372036854771712", 900, 0)  # nobody's limit
    group(tmp_path / "fs/memory", V1, "9223372036854771712", 5000, 0)
    assert list(left_in_groups(tmp_path / "fs", mine)) == [1500]


def test_both_versions_at_a_time(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("3:memory:/a\n0::/b\n")
    group(tmp_path / "fs/memory/a", V1, "2000", 500, 100)
    group(tmp_path / "fs/b", V2, "5000", 500, 0)
    assert sorted(left_in_groups(tmp_path / "fs", mine)) == [1600, 4500]


@pytest.mark.parametrize("text", ["", "0::/gone\n", "3:cpu:/a\n"])
def test_no_group_that_limits(text: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text(text)
    assert list(left_in_groups(tmp_path / "fs", mine)) == []
    assert list(left_in_groups(tmp_path / "fs", tmp_path / "none")) == []


def test_a_file_that_says_nothing_limits_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("0::/a\n")
    group(tmp_path / "fs/a", V2, "what?", 1, 0)
    assert list(left_in_groups(tmp_path / "fs", mine)) == []


def test_this_machine_has_some() -> None:
    assert free_bytes() > 0
