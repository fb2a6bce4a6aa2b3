"""What the doctor says of this machine, and of one that has less."""

import json
import os
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner

from moekit import doctor
from moekit.cli.doctor import doctor as verb
from moekit.core.errors import UsageError
from moekit.core.hardware import hardware


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LARGEST_SAMPLE", 8_000_000)
    monkeypatch.setattr(doctor, "_DISK_SAMPLE", 1_024_000)


def test_json_and_table_say_the_same() -> None:
    done = CliRunner().invoke(verb, ["--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["cores"] == hardware().cores
    assert shown["memory_bytes"] == psutil.virtual_memory().total
    assert 0 < shown["memory_available_bytes"] <= shown["memory_bytes"]
    assert 1e8 < shown["read_bandwidth"] < 1e13
    assert shown["disk_bandwidth"] is None or shown["disk_bandwidth"] > 1e5
    assert shown["torch"] == torch.__version__
    assert shown["kernels"] == "torch" or shown["kernels"].startswith("native (")
    table = CliRunner().invoke(verb, [], env={"COLUMNS": "200"}).stdout
    assert shown["cpu"] in table
    assert shown["kernels"] in table
    for sentence in shown["advice"]:
        assert sentence.split(":")[0] in table


def test_a_file_is_read_as_experts_are(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(5 << 20))
    done = CliRunner().invoke(verb, [str(path), "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["size"] == 5 << 20
    assert {(speed["piece"], speed["threads"]) for speed in shown["speeds"]} == {
        (piece, threads) for piece in (1 << 18, 1 << 20) for threads in (1, 2, 4, 8)
    }
    assert all(1e6 < speed["bytes_per_second"] < 1e12 for speed in shown["speeds"])
    table = CliRunner().invoke(verb, [str(path)], env={"COLUMNS": "200"}).stdout
    assert "8 threads" in table
    assert "1.05 MB" in table


@pytest.mark.parametrize(("name", "why"), [("nothing.gguf", "There is no file"), ("small.gguf", "1,048,576 or more")])
def test_what_cannot_be_measured_is_said(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    done = CliRunner().invoke(verb, [str(tmp_path / name)])
    assert isinstance(done.exception, UsageError)
    assert why in str(done.exception)


def test_the_disk_is_read_as_far_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bandwidth, _ = doctor.disk_bandwidth(tmp_path)
    assert bandwidth is not None
    assert bandwidth > 0
    assert list(tmp_path.iterdir()) == []
    assert doctor.disk_bandwidth(tmp_path / "nowhere") == (None, False)
    monkeypatch.setattr(os, "O_DIRECT", -1, raising=False)  # flags that no file system takes
    bandwidth, direct = doctor.disk_bandwidth(tmp_path)
    assert bandwidth is not None
    assert not direct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni ssse3\nflags\t\t: fpu", ("avx2", "avx512_vnni")),
        ("Features\t: fp asimd asimddp\n", ("asimd", "asimddp")),
        ("nothing", ()),
    ],
)
def test_instruction_sets(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert doctor.instruction_sets(tmp_path / "cpuinfo") == expected
    assert doctor.instruction_sets(tmp_path / "nowhere") == ()


def test_advice() -> None:
    assert doctor._advice(2, 2, "avx512_vnni", ()) == ()
    gpu = doctor.GPU(name="one", memory_bytes=1)
    without, threads, unused = doctor._advice(4, 1, None, (gpu,))
    assert "install CMake" in without
    assert "1 of 4 cores" in threads
    assert "GPU" in unused
