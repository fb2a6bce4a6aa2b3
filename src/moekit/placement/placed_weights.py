"""The weights of a model within a budget: what has its place is read into memory, of the rest is told where it lies."""

import mmap
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from moekit.checkpoint.gguf import GGUFTensor
from moekit.core.progress import Progress, Task
from moekit.families.gguf import GGUFModel
from moekit.kernels.native.block_streaming import BlockStreaming
from moekit.kernels.native.direct_reading import DirectReader
from moekit.kernels.native.expert_streaming import ExpertStreaming
from moekit.kernels.native.streaming import Streaming
from moekit.kernels.native.weights import DecoderWeights
from moekit.kernels.packed import Bytes
from moekit.placement.placed_model import MemoryOptions, PlacedModel, fits, place


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Weights that are ready to be computed with.

    Attributes:
        weights: of a decoder; of what stays on disk, shapes and types alone.
        streaming: what that is; None where all of it is in memory.
        placed: what lies where; None where nobody needed to look.
    """

    weights: DecoderWeights
    streaming: Streaming | None = None
    placed: PlacedModel | None = None


def load_weights(stored: GGUFModel, memory: MemoryOptions, context: int | None, progress: Progress) -> LoadedWeights:
    """Place a model and load it; with no budget, and where there is plenty of memory, its weights are the file's pages.

    Raises:
        UsageError: where the model does not fit the budget, with what would.
        MoekitError: where the file cannot be read.
    """
    if memory.budget is None and fits(stored):
        return LoadedWeights(weights=stored.weights())
    placed = place(stored, memory, context)
    memory.on_placed(placed)
    if not placed.placement.streams:
        return LoadedWeights(weights=stored.weights(), placed=placed)
    weights, streaming = placed_weights(stored, placed, progress)
    return LoadedWeights(weights=weights, streaming=streaming, placed=placed)


def placed_weights(stored: GGUFModel, placed: PlacedModel, progress: Progress) -> tuple[DecoderWeights, Streaming]:
    """Read what has its place in memory, and say how the rest is read.

    All that every token reads goes into memory of its own: pages of a mapped file are given up as soon as experts that
    are read once, and what every token needs would be read again and again.

    Raises:
        MoekitError: where the file cannot be read.
    """
    memory, placement = placed.memory, placed.placement
    experts = ring = None
    elsewhere: set[str] = set()
    assert placed.bandwidths is not None
    threads = placed.bandwidths.disk_threads
    if placement.passing:
        experts = ExpertStreaming(
            files=stored.file.paths,
            experts=[() if layer is None else layer.spans for layer in memory.layers],
            places=placement.places,
            passing=placement.passing,
            policy=placed.policy,
            prefetch=placed.prefetch,
            threads=threads,
        )
        elsewhere |= {name for layer in memory.layers if layer is not None for name in layer.names}
    if placement.ring_bytes:
        blocks = [block for block, kept in zip(memory.blocks, placement.kept_blocks, strict=True) if not kept]
        ring = BlockStreaming(
            files=stored.file.paths,
            blocks=[block.spans for block in blocks],
            ring_bytes=placement.ring_bytes,
            threads=threads,
        )
        elsewhere |= {name for block in blocks for name in block.names}
    total = placement.dense_bytes + placement.block_bytes + (0 if placement.passing else placement.place_bytes)
    with Task(progress, "Loading", total=total, unit="bytes") as task:
        weights = stored.weights(TensorsInMemory(stored, elsewhere, task))
    return weights, Streaming(experts=experts, blocks=ring)


class TensorsInMemory:
    """Give the bytes of tensors in memory of their own; of those that are elsewhere, nothing but their shape.

    An embedding that is not the head, too, stays in the file: of that a token needs a row.
    """

    def __init__(self, stored: GGUFModel, elsewhere: Container[str], task: Task) -> None:
        self._stored, self._elsewhere, self._task = stored, elsewhere, task
        self._readers = [DirectReader(path) for path in stored.file.paths]
        self._in_file = "" if stored.config.tie_embeddings else "token_embd.weight"

    def __call__(self, tensors: Sequence[GGUFTensor]) -> Bytes:
        """Give the bytes; raises MoekitError where they cannot be read."""
        first = tensors[0]
        rows, size = sum(tensor.rows for tensor in tensors), sum(tensor.size for tensor in tensors)
        if first.name == self._in_file:
            self._stored.file.expect_single_rows(first.name)
            return self._stored.mapped(tensors)
        if first.name in self._elsewhere:
            return _nothing(size).reshape(rows, -1)
        data_B = np.empty(size, np.uint8)
        done = 0
        for tensor in tensors:
            self._readers[tensor.part].read_into(tensor.start, data_B[done : done + tensor.size])
            done += tensor.size
            self._task.advance(tensor.size)
        return data_B.reshape(rows, -1)


def _nothing(size: int) -> Bytes:
    """Give memory that is never touched and so takes none: neither shared nor ever written to."""
    return np.frombuffer(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ), np.uint8
    )
