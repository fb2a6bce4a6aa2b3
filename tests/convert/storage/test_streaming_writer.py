"""The streaming writer: what it writes, that a kill at any moment costs nothing, that memory stays flat."""

import errno
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.storage.killed_runs import killed
from torch import Tensor

from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.convert.storage import streaming_writer as streaming
from moekit.convert.storage.output_tensors import Copy, Made, OutputTensor
from moekit.convert.storage.partial_folder import partial_folder
from moekit.convert.storage.streaming_writer import output_bytes, peak_memory_bytes, write_tensors
from moekit.core import files
from moekit.core.errors import MoekitError, UsageError


@pytest.fixture
def source(tmp_path: Path) -> StoredTensors:
    (tmp_path / "source").mkdir()
    tensors = {"a": torch.randn(40, 6), "b": torch.randn(7, 5).bfloat16(), "c": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    return StoredTensors.open(tmp_path / "source")


def made(tensor: Tensor, key: str = "") -> Made:
    return Made(lambda: tensor, tuple(tensor.shape), tensor.nbytes, key)


def plan(source: StoredTensors) -> list[OutputTensor]:
    """Copies, rows of copies, conversions, computed pieces, and tensors of several of them."""
    return [
        OutputTensor("whole", torch.float32, (40, 6), (Copy(source, "a"),)),
        OutputTensor(
            "mixed", torch.float32, (9, 6), (Copy(source, "a", 3, 8), made(torch.ones(2, 6)), Copy(source, "a", 38))
        ),
        OutputTensor("converted", torch.bfloat16, (40, 6), (Copy(source, "a"),)),
        OutputTensor("wider", torch.float32, (3, 5), (Copy(source, "b", 1, 4),)),
        OutputTensor("scalar", torch.float32, (), (Copy(source, "c"),)),
        OutputTensor("turned", torch.bfloat16, (5, 7), (made(torch.arange(35.0).view(7, 5).t()),)),
        OutputTensor("empty", torch.float32, (0, 6), ()),
    ]


def expected(source: StoredTensors) -> dict[str, Tensor]:
    file = next(iter(source.values())).file
    a, b, c = (load_file(file)[name] for name in "abc")
    return {
        "whole": a,
        "mixed": torch.cat([a[3:8], torch.ones(2, 6), a[38:]]),
        "converted": a.bfloat16(),
        "wider": b[1:4].float(),
        "scalar": c,
        "turned": torch.arange(35.0).view(7, 5).t().bfloat16().contiguous(),
        "empty": torch.zeros(0, 6),
    }


def check(folder: Path, wanted: dict[str, Tensor]) -> None:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    sums = json.loads((folder / "checksums.json").read_text())
    assert sums.keys() == {file.name for file in folder.iterdir()} - {"checksums.json"}
    for name, entry in sums.items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 700])
@pytest.mark.parametrize("chunk", [4 << 20, 64, 8])
def test_what_is_written(
    source: StoredTensors, tmp_path: Path, shard_bytes: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(streaming, "_SYNC_BYTES", 256)
    written: list[int] = []
    tensors = plan(source)
    names = write_tensors(tmp_path / "out", tensors, shard_bytes=shard_bytes, on_bytes=written.append)
    check(tmp_path / "out", expected(source))
    held = sum((tmp_path / "out" / name).stat().st_size for name in names)
    assert held == output_bytes(tensors, shard_bytes=shard_bytes)
    assert sum(written) == sum((tmp_path / "out" / name).stat().st_size for name in names if "index" not in name)
    assert len(names) == (1 if shard_bytes > 10_000 else 4)
    assert dict(StoredTensors.open(tmp_path / "out")).keys() == expected(source).keys()
    assert os.listdir(tmp_path) == [*{"source", "out"}] or sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_layout_is_that_of_the_safetensors_library(source: StoredTensors, tmp_path: Path) -> None:
    write_tensors(tmp_path / "out", plan(source))
    save_file(expected(source), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_pieces_that_are_not_the_whole_tensor(source: StoredTensors) -> None:
    with pytest.raises(AssertionError, match="'x'"):
        OutputTensor("x", torch.float32, (40, 6), (Copy(source, "a", 1),))


def test_a_computed_piece_of_another_shape(tmp_path: Path) -> None:
    tensor = OutputTensor("x", torch.float32, (2, 3), (Made(lambda: torch.zeros(3, 2), (2, 3), 24),))
    with pytest.raises(AssertionError, match="'x'"):
        write_tensors(tmp_path / "out", [tensor])


def test_what_exists_is_left_alone(source: StoredTensors, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        write_tensors(tmp_path / "out", plan(source))
    other = partial_folder(tmp_path / "new")
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(UsageError, match="in the way"):
        write_tensors(tmp_path / "new", plan(source))
    assert (other / "mine").exists()


def test_files_beside_the_weights(source: StoredTensors, tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "out", plan(source), fill=lambda folder: (folder / "config.json").write_text("{}") and None
    )
    check(tmp_path / "out", expected(source))
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


class Stopped(Exception):
    pass


def stop_after(count: int) -> streaming.Callable[[int], None]:
    left = count

    def on_bytes(size: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        time.sleep(0.003)

    return on_bytes


def test_another_plan_in_that_place(source: StoredTensors, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        write_tensors(tmp_path / "out", plan(source), on_bytes=stop_after(1))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="another result"):
        write_tensors(tmp_path / "out", plan(source)[:-2])
    with pytest.raises(UsageError, match="another result"):
        write_tensors(tmp_path / "out", plan(source), settings="seed 2")
    turned = made(torch.arange(35.0).view(7, 5).t(), "seed 2")
    changed = [*plan(source)[:-2], OutputTensor("turned", torch.bfloat16, (5, 7), (turned,)), plan(source)[-1]]
    with pytest.raises(UsageError, match="another result"):
        write_tensors(tmp_path / "out", changed)
    file = next(iter(source.values())).file
    os.utime(file, ns=(1, 1))
    with pytest.raises(UsageError, match="another result"):
        write_tensors(tmp_path / "out", plan(StoredTensors.open(file.parent)))


def test_a_source_that_changes_meanwhile(source: StoredTensors, tmp_path: Path) -> None:
    tensors = plan(source)
    os.utime(next(iter(source.values())).file, ns=(1, 1))
    with pytest.raises(MoekitError, match="has changed"):
        write_tensors(tmp_path / "out", tensors)


@pytest.mark.parametrize("after", range(1, 12, 2))
def test_going_on_writes_only_what_is_missing(
    source: StoredTensors, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", 256)
    monkeypatch.setattr(streaming, "_SYNC_BYTES", 256)
    # A disk that is fast, so that positions inside of pieces are noted, too.
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    stop = stop_after(after)
    with pytest.raises(Stopped):
        write_tensors(tmp_path / "out", plan(source), shard_bytes=1500, on_bytes=stop)
    # Bytes behind the position that is known to be on disk may be anything after a power cut.
    reached = {}
    for line in (partial_folder(tmp_path / "out") / "journal.jsonl").read_text().splitlines()[1:]:
        entry = json.loads(line)
        reached[entry["file"]] = entry["position"]
    for file in partial_folder(tmp_path / "out").glob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.seek(reached.get(file.name, 0))
            opened.write(b"\xff" * 32)
    write_tensors(tmp_path / "out", plan(source), shard_bytes=1500)
    check(tmp_path / "out", expected(source))


def test_a_full_disk_is_said_and_can_be_gone_on_from(
    source: StoredTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, really = 900, os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = min(room, len(data))  # as the system does: as much as fits, then the error
        room -= size
        return really(descriptor, data[:size], position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(MoekitError, match=r"disk is full while writing .*out"):
        write_tensors(tmp_path / "out", plan(source))
    assert not (tmp_path / "out").exists()
    room = 10**9
    write_tensors(tmp_path / "out", plan(source))
    check(tmp_path / "out", expected(source))


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    source: StoredTensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(files.shutil.disk_usage(tmp_path))(10**9, 10**9 - 100, 100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MoekitError, match=r"needs .* kB more and the disk has 100 B free"):
        write_tensors(tmp_path / "out", plan(source))
    assert not list(partial_folder(tmp_path / "out").glob("*.safetensors"))


def test_two_runs_at_once(source: StoredTensors, tmp_path: Path) -> None:
    def second(folder: Path) -> None:
        with pytest.raises(MoekitError, match="Another run"):
            write_tensors(tmp_path / "out", plan(source))

    write_tensors(tmp_path / "out", plan(source), fill=second)
    check(tmp_path / "out", expected(source))


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Runs killed 20 times: each result in the end is that of a run which nobody disturbed."""
    (tmp_path / "source").mkdir()
    save_file({"a": torch.randn(500, 100)}, tmp_path / "source" / "model.safetensors")
    assert len(killed(tmp_path, 20)) == 8 + 3


_MEASURED = """
import sys, threading, time
from pathlib import Path
import torch
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.convert.storage.output_tensors import Copy, OutputTensor
from moekit.convert.storage.streaming_writer import peak_memory_bytes, write_tensors
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
source, peak = StoredTensors.open(Path(sys.argv[1])), 0
pieces = (Copy(source, "a"),)
tensors = [OutputTensor(f"t{index}", torch.bfloat16, (8192, 1024), pieces) for index in range(int(sys.argv[3]))]
before = anonymous()
def look(size):
    global peak
    peak = max(peak, anonymous())
write_tensors(Path(sys.argv[2]), tensors, on_bytes=look)
print(peak - before, peak_memory_bytes(tensors))
"""


def test_memory_is_flat(tmp_path: Path) -> None:
    """16 MB and 256 MB of output, whose types change on the way, take the same memory: what was promised."""
    (tmp_path / "source").mkdir()
    save_file({"a": torch.zeros(8192, 1024)}, tmp_path / "source" / "model.safetensors")
    used = []
    for copies in (1, 16):
        out = tmp_path / f"out{copies}"
        command = [sys.executable, "-c", _MEASURED, str(tmp_path / "source"), str(out), str(copies)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        grown, promised = map(int, run.stdout.split())
        used.append(grown)
        assert grown <= promised
    assert abs(used[0] - used[1]) < 6_000_000


def test_peak_memory_counts_the_largest_computed_piece(source: StoredTensors) -> None:
    base = peak_memory_bytes([plan(source)[0]])
    piece = Made(lambda: torch.zeros(10, 10), (10, 10), 5000)
    assert peak_memory_bytes([*plan(source), OutputTensor("x", torch.float32, (10, 10), (piece,))]) == base + 5400
    assert base < 40_000_000
