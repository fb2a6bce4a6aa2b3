"""From a GGUF file and a budget to weights that stay within it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moekit.checkpoint.gguf import GGUFTensor
from moekit.core.hardware import resident_bytes
from moekit.core.progress import Progress, Task
from moekit.families.gguf import GGUFModel
from moekit.kernels.native.expert_streaming import DirectReader, ExpertStreaming, PolicyName, PrefetchName
from moekit.kernels.native.weights import DecoderWeights
from moekit.kernels.packed import Bytes
from moekit.placement.memory_limit import default_budget, free_bytes
from moekit.placement.model_memory import ModelMemory, model_memory
from moekit.placement.solver import Placement, solve
from moekit.placement.speed import Bandwidths, PredictedSpeed, measure_bandwidths, predict


@dataclass(frozen=True, kw_only=True)
class PlacedModel:
    """What lies where, how experts that have no place are read, and how fast that should be.

    Attributes:
        memory: what the model's parts take.
        placement: where they lie.
        policy: which experts keep their places.
        prefetch: whether experts are read ahead.
        bandwidths: those of this machine and of the model's file; None where nothing is read from it later.
        speed: what is expected of one sequence.
    """

    memory: ModelMemory
    placement: Placement
    policy: PolicyName
    prefetch: PrefetchName
    bandwidths: Bandwidths | None
    speed: PredictedSpeed | None


def _ignore(placed: PlacedModel) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How much memory a model may take, and how experts are read that have no place in it.

    Attributes:
        budget: bytes for the whole process; None for what is free, less a margin.
        sequences: how many are generated at a time.
        policy: which experts keep their places; `ExpertStreaming` says what each name means.
        prefetch: whether experts are read ahead.
        on_placed: is told what lies where, before the weights are read.
    """

    budget: int | None = None
    sequences: int = 1
    policy: PolicyName = "lru"
    prefetch: PrefetchName = "measured"
    on_placed: Callable[[PlacedModel], None] = _ignore


def fits(stored: GGUFModel) -> bool:
    """Tell whether a model's file is so much smaller than what is free that nobody needs to look closer."""
    return 1.5 * sum(tensor.size for tensor in stored.file.tensors.values()) < free_bytes()


def place(stored: GGUFModel, options: MemoryOptions, context: int | None) -> PlacedModel:
    """Decide what lies where; where some of it stays on disk, memory and disk are measured first.

    Raises:
        UsageError: where the model does not fit the budget, with what would.
        MoekitError: where the file cannot be read.
    """
    memory = model_memory(stored)
    if memory.converted:
        import torch  # noqa: F401 -- what converts them, and takes memory of its own
    resident = resident_bytes()
    budget = default_budget(resident) if options.budget is None else options.budget
    placement = solve(memory, budget=budget, resident=resident, context=context, sequences=options.sequences)
    bandwidths = speed = None
    if placement.passing:
        largest = max(
            (span for layer in memory.layers if layer for span in layer.spans[0] if span is not None),
            key=lambda span: span.size,
        )
        bandwidths = measure_bandwidths(stored.file.paths[largest.file], largest.size)
        speed = predict(memory, placement, bandwidths)
    return PlacedModel(
        memory=memory,
        placement=placement,
        policy=options.policy,
        prefetch=options.prefetch,
        bandwidths=bandwidths,
        speed=speed,
    )


def placed_weights(
    stored: GGUFModel, placed: PlacedModel, progress: Progress
) -> tuple[DecoderWeights, ExpertStreaming]:
    """Read what has its place in memory, and say how the rest is read.

    All that every token reads goes into memory of its own: pages of a mapped file are given up as soon as experts that
    are read once, and what every token needs would be read again and again.

    Raises:
        MoekitError: where the file cannot be read.
    """
    layers = placed.memory.layers
    streamed = [index for index, layer in enumerate(layers) if layer is not None]
    with Task(progress, "Loading", total=placed.memory.dense_bytes, unit="bytes") as task:
        weights = stored.weights(streamed, _Reading(stored.file.paths, task))
    assert placed.bandwidths is not None
    streaming = ExpertStreaming(
        files=stored.file.paths,
        experts=[() if layer is None else layer.spans for layer in layers],
        places=placed.placement.places,
        passing=placed.placement.passing,
        policy=placed.policy,
        prefetch=placed.prefetch,
        threads=placed.bandwidths.disk_threads,
    )
    return weights, streaming


class _Reading:
    def __init__(self, paths: Sequence[Path], task: Task) -> None:
        self.readers = [DirectReader(path) for path in paths]
        self.task = task

    def __call__(self, tensor: GGUFTensor) -> Bytes:
        data_B = self.readers[tensor.part].read(tensor.start, tensor.size)
        self.task.advance(tensor.size)
        return data_B.reshape(tensor.rows, -1)
