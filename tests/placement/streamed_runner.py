"""A model of which parts stay on disk; without torch, for processes of their own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moekit.core.progress import Task, no_progress
from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
from moekit.kernels.native.block_streaming import BlockStreaming
from moekit.kernels.native.expert_streaming import ExpertStreaming
from moekit.kernels.native.streaming import Streaming
from moekit.kernels.packed import Numbers
from moekit.placement.model_memory import model_memory
from moekit.placement.placed_weights import TensorsInMemory

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 700,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""What transformers takes for small models."""


def streamed(path: Path, *, places: int | None = None, kept: set[int] | None = None, **options: Any) -> NativeRunner:
    """A runner with so many places a layer for experts, and of the blocks those with such numbers in memory.

    None: all of them. ring: how many of the largest blocks the ring holds.
    """
    stored = GGUFModel(path)
    memory = model_memory(stored)
    files = stored.file.paths
    ring, elsewhere = options.pop("ring", 2), set[str]()
    experts = blocks = None
    if places is not None:
        elsewhere |= {name for layer in memory.layers if layer for name in layer.names}
        experts = ExpertStreaming(
            files=files,
            experts=[() if layer is None else layer.spans for layer in memory.layers],
            places=[places if layer else 0 for layer in memory.layers],
            **options,
        )
    if kept is not None:
        on_disk = [block for index, block in enumerate(memory.blocks) if index not in kept]
        elsewhere |= {name for block in on_disk for name in block.names}
        blocks = BlockStreaming(
            files=files,
            blocks=[block.spans for block in on_disk],
            ring_bytes=int(ring * max(block.bytes for block in on_disk)),
        )
    with Task(no_progress, "Loading", total=0, unit="bytes") as task:
        weights = stored.weights(TensorsInMemory(stored, elsewhere, task))
    return NativeRunner(stored.config, weights, None, Streaming(experts=experts, blocks=blocks))


def answers(runner: NativeRunner, batch: int, prompt: int = 530, steps: int = 12) -> list[Numbers]:
    """Logits after a prompt of several chunks, and after each of some steps of several sequences."""
    tokens = np.random.default_rng(batch).integers(0, 96, (batch, prompt + steps)).tolist()
    caches = [runner.new_cache() for _ in range(batch)]
    found = [
        runner.prefill(cache, row[: prompt - 5 * i]) for i, (cache, row) in enumerate(zip(caches, tokens, strict=True))
    ]
    return found + [runner.decode(caches, [row[prompt + step] for row in tokens]) for step in range(steps)]


def check_same(got: list[Numbers], expected: list[Numbers]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def written_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


CHANGES: list[tuple[Callable[[Path], None], str]] = [(cut, "shorter|written to"), (written_to, "written to")]
"""What may happen to a file while it is used, and what is said of it."""
