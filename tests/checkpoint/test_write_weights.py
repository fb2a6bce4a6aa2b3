"""A folder is written whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.checkpoint.sample_layout import bits, layout, random_parameters

from moekit.checkpoint.layout import Part, Stored, stored
from moekit.checkpoint.views import LayoutError
from moekit.checkpoint.write_weights import write_folder, write_weights
from moekit.core import files
from moekit.core.errors import MoekitError, UsageError


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "config.json").write_text("{}")


def test_a_new_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b", fill)
    assert (tmp_path / "a" / "b" / "deep" / "config.json").read_text() == "{}"
    assert os.listdir(tmp_path / "a") == ["b"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_folder_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    write_folder(tmp_path / "link", fill)
    assert sorted(os.listdir(tmp_path)) == ["empty", "link"]
    assert os.listdir(tmp_path / "empty") == ["deep"]


def test_what_exists_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path("/"), tmp_path / "held", tmp_path / "held" / "mine", Path(".")):
        with pytest.raises(UsageError, match=r"is not an empty folder|is in use"):
            write_folder(target, lambda folder: pytest.fail("has begun"))
    assert sorted(os.listdir(tmp_path)) == ["held", "here"]


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()

    with pytest.raises(UsageError, match="not an empty folder"):
        write_folder(tmp_path / "out", slow)
    assert os.listdir(tmp_path / "out") == ["mine"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", failing)
    assert not os.listdir(tmp_path)


def test_a_kill_leaves_no_target(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from moekit.checkpoint.write_weights import write_folder\n"
        "def fill(folder): (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_folder(Path(sys.argv[1]), fill)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    write_folder(tmp_path / "out", fill)


def test_files_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync, rename = files.sync, os.rename
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path.name), sync(path)))
    monkeypatch.setattr(os, "rename", lambda a, b: (synced.append("rename"), rename(a, b)))
    write_folder(tmp_path / "out", fill)
    assert {"config.json", "deep"} <= set(synced[: synced.index("rename")])
    assert synced[-2:] == ["rename", tmp_path.name]


def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    room = [2]

    def full(descriptor: int, data: memoryview, position: int) -> int:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MoekitError, match="disk is full"):
        write_folder(tmp_path / "out", lambda folder: write_weights(folder, layout(), random_parameters()))
    assert not os.listdir(tmp_path)

    def sync_fails(path: Path) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(files, "sync", sync_fails)
    with pytest.raises(MoekitError, match=r"disk is full while writing .*out;"):
        write_folder(tmp_path / "out", fill)
    assert not os.listdir(tmp_path)


def test_weights_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index last: a folder without it does not pass for a model."""
    order: list[str] = []
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    names = write_weights(tmp_path, layout(), random_parameters(), shard_bytes=600)
    assert order == names
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_writes_that_fall_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, parameters = os.pwrite, random_parameters()
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:5], at))
    write_weights(tmp_path / "short", layout(), parameters)
    monkeypatch.undo()
    write_weights(tmp_path / "long", layout(), parameters)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("short", "long")}) == 1


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"],
)
def test_weights_are_not_mixed_with_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"holds weights already .{name}"):
        write_weights(tmp_path, layout(), random_parameters())
    assert os.listdir(tmp_path) == [name]


def test_metadata(tmp_path: Path) -> None:
    parameters = {"é": torch.zeros(1)}
    for name, metadata in (("own", {"who": "mé\n"}), ("none", {}), ("usual", None)):
        write_weights(tmp_path / name, [stored("é\x01", "é")], parameters, metadata=metadata)
        with safe_open(tmp_path / name / "model.safetensors", framework="pt") as file:
            assert list(file.keys()) == ["é\x01"]
            assert file.metadata() == ({"format": "pt"} if metadata is None else metadata or None)


def test_parts_of_several_types(tmp_path: Path) -> None:
    """The stored tensor has the type that holds both."""
    parameters = {"q": torch.randn(2, 3).bfloat16(), "k": torch.randn(2, 3)}
    parts = (Part(ours="q", of_stored=lambda t: t[:2]), Part(ours="k", of_stored=lambda t: t[2:]))
    write_weights(tmp_path, [Stored(name="qk", shape=(4, 3), parts=parts)], parameters)
    found = load_file(tmp_path / "model.safetensors")["qk"]
    assert bits(found) == bits(torch.cat([parameters["q"].float(), parameters["k"]]))


def test_what_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(MoekitError, match=r"'w' is of type torch\.complex64"):
        write_weights(tmp_path, [stored("w", "w")], {"w": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(LayoutError, match="covers 0 of the 1 elements of 'v'"):
        write_weights(tmp_path, [stored("w", "w")], {"w": torch.zeros(1), "v": torch.zeros(1)})
    assert not os.listdir(tmp_path)
