"""`--memory`, as a user gives it: what is said before, the same text after, and never more memory than that."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moekit.checkpoint.gguf import OutputTensor, write_gguf
from moekit.checkpoint.views import stored_shape
from moekit.config import AttentionConfig, DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.families.gguf import describe, layout
from moekit.kernels.packed import F32, Q8_0, Bytes
from moekit.models import Decoder
from moekit.models.folder import own_tensors
from moekit.nn.meta import on_meta

MOEKIT = str(Path(sys.executable).with_name("moekit"))
# Large beside what is kept back, small beside a test: 38 MB of experts, or of ffns.
SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "width": 256,
    "context": 512,
    "attention": AttentionConfig(heads=4, kv_heads=2, head_width=64),
}
MIXTURE = ModelConfig(
    **SHAPE, layers=(MoEConfig(experts=12, expert_width=1024, router=SoftmaxTopKConfig(top_k=2)),) * 4
)
DENSE = ModelConfig(**SHAPE, layers=(DenseConfig(width=6144),) * 8)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(MIXTURE, tmp_path_factory.mktemp("budget") / "mixture.gguf")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(DENSE, tmp_path_factory.mktemp("budget") / "dense.gguf")


def random_model(config: ModelConfig, path: Path) -> Path:
    """A model of random blocks, whose tokens are bytes."""
    generator = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...], kind: Any) -> Iterator[Bytes]:
        rows = math.prod(shape[:-1])
        if kind is F32:
            yield (generator.standard_normal((rows, shape[-1]), np.float32) * 0.3 + (len(shape) == 1)).view(np.uint8)
            return
        data = generator.integers(256, size=(rows * shape[-1] // 32, 34), dtype=np.uint8)
        data[:, :2] = np.array([0.0006], np.float16).view(np.uint8)
        yield data.reshape(rows, -1)

    with on_meta():
        parameters = own_tensors(Decoder(config))
    architecture, metadata = describe(config)
    tensors = []
    for entry in layout(architecture, config):
        shape = stored_shape(entry, parameters)
        kind = F32 if len(shape) == 1 or "gate_inp" in entry.name else Q8_0
        tensors.append(
            OutputTensor(name=entry.name, type=kind, shape=shape, make=lambda s=shape, k=kind: numbers(s, k))  # type: ignore[misc]
        )
    write_gguf(path, architecture.name, metadata | {"general.quantization_version": 2}, tensors)
    return path


def generate(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [MOEKIT, "generate", *map(str, arguments), "-n", "24", "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


def least(model: Path) -> int:
    """What a refusal says is the least, in megabytes."""
    refused = generate(model, "a prompt", "--memory", "10MB")
    assert refused.returncode == 2
    found = re.search(r"give --memory (\d+)MB", refused.stderr)
    assert found, refused.stderr
    return int(found[1])


def test_the_same_text_within_the_least_memory(mixture: Path) -> None:
    megabytes = least(mixture)
    whole = json.loads(generate(mixture, "a prompt").stdout)
    ended = generate(mixture, "a prompt", "--memory", f"{megabytes}MB")
    assert ended.returncode == 0, ended.stderr
    got = json.loads(ended.stdout)
    assert got["text"] == whole["text"]
    assert got["memory"]["experts"]["misses"] > 0
    assert sum(got["memory"]["placement"]["places"]) < 48
    assert got["memory"]["placement"]["budget"] == megabytes * 10**6
    for row in ("experts on disk", "KV cache", "measured on this file", "tokens/s"):
        assert row in ended.stderr


def test_the_same_text_of_a_dense_model(dense: Path) -> None:
    """In the least memory, and with some of its blocks in it."""
    whole = json.loads(generate(dense, "a prompt").stdout)
    kept = []
    for more in (4, 16):
        ended = generate(dense, "a prompt", "--memory", f"{least(dense) + more}MB")
        assert ended.returncode == 0, ended.stderr
        got = json.loads(ended.stdout)
        assert got["text"] == whole["text"]
        assert got["memory"]["experts"] is None
        assert got["memory"]["blocks"]["bytes"] > 0
        kept.append(sum(got["memory"]["placement"]["kept_blocks"]))
        for row in ("read for every token", "through a ring", "measured on this file", "tokens/s"):
            assert row in ended.stderr
    assert kept[0] < kept[1] < 16


def test_all_of_it_in_memory_where_there_is_room(mixture: Path) -> None:
    ended = json.loads(generate(mixture, "a prompt", "--memory", "2GB").stdout)
    assert ended["memory"]["experts"] is None
    assert ended["memory"]["placement"]["passing"] == 0
    assert ended["memory"]["placement"]["ring_bytes"] == 0


def test_a_longer_context_takes_its_memory_from_the_experts(mixture: Path) -> None:
    megabytes = least(mixture) + 12
    places = []
    for context in (64, 512):
        ended = generate(mixture, "x", "--memory", f"{megabytes}MB", "--context", context)
        places.append(sum(json.loads(ended.stdout)["memory"]["placement"]["places"]))
    assert places[0] > places[1]


@pytest.mark.parametrize("size", ["4", "GB", "0GB", "-1GB", "4GBB", "nanGB", "1e400GB"])
def test_what_is_no_size_is_said(size: str, mixture: Path) -> None:
    refused = generate(mixture, "x", f"--memory={size}")
    assert refused.returncode == 2
    assert "like 4GB" in refused.stderr


def test_folders_have_no_budget(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused = generate(tmp_path, "x", "--memory", "1GB")
    assert refused.returncode == 2
    assert "GGUF" in refused.stderr


def test_two_processes_on_one_file(mixture: Path) -> None:
    megabytes = least(mixture) + 6
    command = [MOEKIT, "generate", str(mixture), "a prompt", "-n", "60", "--json", "--memory", f"{megabytes}MB"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    first, second = (json.loads(text) for text in said)
    assert first["text"] == second["text"]
    assert first["memory"]["experts"]["bytes"] > 0 < second["memory"]["experts"]["bytes"]


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_experts_are_read_leaves_nothing_behind(
    ended_by: signal.Signals, mixture: Path, tmp_path: Path
) -> None:
    megabytes = least(mixture) + 6
    command = [MOEKIT, "generate", str(mixture), "a prompt", "-n", "400", "--memory", f"{megabytes}MB"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    before = sorted(mixture.parent.iterdir())
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        preexec_fn=lambda: signal.signal(ended_by, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )  # fmt: skip
    assert process.stdout
    process.stdout.read(20)  # in the middle of the text
    process.send_signal(ended_by)
    _, said = process.communicate(timeout=10)
    assert process.returncode != 0
    assert b"Traceback" not in said
    assert sorted(mixture.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_takes_less_than_a_second_of_looking(mixture: Path) -> None:
    """Beside what any command takes to start."""
    seconds = []
    for arguments in (["10MB"], ["nonsense"]):
        began = time.perf_counter()
        assert generate(mixture, "x", "--memory", *arguments).returncode == 2
        seconds.append(time.perf_counter() - began)
    assert seconds[0] - seconds[1] < 1


GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not os.access(GROUPS, os.W_OK), reason="needs to make a control group of version 1")
def test_a_control_group_holds_it(mixture: Path) -> None:
    """The kernel counts, page cache and all, and ends the process where it goes beyond."""
    megabytes = least(mixture) + 8
    group = GROUPS / f"moekit-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(round(1.05e6 * megabytes)))
        arguments = f"generate {mixture} '{'word ' * 90}' --memory {megabytes}MB --context 512 -n 40 --json"
        script = f"echo $$ > {group}/cgroup.procs && exec {MOEKIT} {arguments}"
        ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert int((group / "memory.oom_control").read_text().split()[-1]) == 0
    finally:
        group.rmdir()
