"""How fast a placed model will answer, from what this machine and this file were measured to give."""

from dataclasses import dataclass
from pathlib import Path

from moekit.kernels.native import read_bandwidth
from moekit.kernels.native.direct_reading import DirectReader, disk_speed
from moekit.placement.model_memory import LayerExperts, ModelMemory
from moekit.placement.solver import Placement

# What decoding was measured to reach of the bandwidth of memory (benchmarks/cpu_inference.py).
_MEMORY_SHARE = 0.8
_SAMPLE = 64_000_000
_THREADS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Bandwidths:
    """Bytes a second, measured.

    Attributes:
        memory: of reading memory with all threads.
        disk: of reading pieces of a matrix's size from the model's file.
        disk_threads: so many of them were the fastest.
        disk_is_direct: whether that went around the page cache.
    """

    memory: float
    disk: float
    disk_threads: int
    disk_is_direct: bool


@dataclass(frozen=True, kw_only=True)
class PredictedSpeed:
    """Tokens a second of one sequence.

    Attributes:
        slow: where the router has no habits, so that an expert is in memory as often as experts are.
        expected: for habits between the two.
        fast: where it has those of the published models whose caches hit most.
    """

    slow: float
    expected: float
    fast: float


def measure_bandwidths(path: Path, piece: int) -> Bandwidths:
    """Measure memory and the file, in less than a second; `piece` is how many bytes are read from one place."""
    speeds = {threads: disk_speed(path, piece, threads=threads, seconds=0.2) for threads in _THREADS}
    best = max(speeds, key=lambda threads: speeds[threads])
    return Bandwidths(
        memory=read_bandwidth(_SAMPLE, 3),
        disk=speeds[best],
        disk_threads=best,
        disk_is_direct=DirectReader(path).direct,
    )


def predict(memory: ModelMemory, placement: Placement, bandwidths: Bandwidths) -> PredictedSpeed:
    """Predict the speed of decoding one sequence.

    Blocks are read from disk while others are computed, so the slower of the two counts; experts are known only when
    they are needed.
    """
    return PredictedSpeed(
        slow=1 / _seconds(memory, placement, bandwidths, habit=1),
        expected=1 / _seconds(memory, placement, bandwidths, habit=1.5),
        fast=1 / _seconds(memory, placement, bandwidths, habit=3),
    )


def _seconds(memory: ModelMemory, placement: Placement, bandwidths: Bandwidths, *, habit: float) -> float:
    """Add up the seconds of a token. habit: of p places for E experts, 1 - (1 - p / E)^habit of the uses hit."""
    layers = [
        (layer, places) for layer, places in zip(memory.layers, placement.places, strict=True) if layer is not None
    ]
    used = memory.dense_bytes + memory.block_bytes + sum(layer.top_k * layer.bytes for layer, _ in layers)
    missing = sum(layer.top_k * layer.bytes * _missing(layer, places) ** habit for layer, places in layers)
    blocks = memory.block_bytes - placement.block_bytes
    computed = used / (bandwidths.memory * _MEMORY_SHARE)
    return float(max(computed, blocks / bandwidths.disk) + missing / bandwidths.disk)


def _missing(layer: LayerExperts, places: int) -> float:
    return 1 - places / len(layer.spans)
