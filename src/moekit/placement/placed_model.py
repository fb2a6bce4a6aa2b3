"""From a GGUF file and a budget to what lies where, and how fast that should be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moekit.core.hardware import resident_bytes
from moekit.families.gguf import GGUFModel
from moekit.kernels.native.direct_reading import FileSpan
from moekit.kernels.native.expert_streaming import PolicyName, PrefetchName
from moekit.placement.memory_limit import default_budget, free_bytes
from moekit.placement.model_memory import ModelMemory, model_memory
from moekit.placement.solver import Placement, solve
from moekit.placement.speed import Bandwidths, PredictedSpeed, measure_bandwidths, predict


@dataclass(frozen=True, kw_only=True)
class PlacedModel:
    """What lies where, how the rest is read, and how fast that should be.

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


_LONGEST_PIECE = 16 << 20
"""What the disk is measured with at most: longer ones are no faster, and a slow disk takes seconds for them."""


def _ignore(placed: PlacedModel) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How much memory a model may take, and how experts are read that have no place in it.

    Attributes:
        budget: bytes for the whole process; None for what is free, less a margin.
        sequences: how many are generated at a time.
        every_row: whether so many texts are read that all rows of the embedding will be in memory.
        policy: which experts keep their places; `ExpertStreaming` says what each name means.
        prefetch: whether experts are read ahead.
        on_placed: is told what lies where, before the weights are read.
    """

    budget: int | None = None
    sequences: int = 1
    every_row: bool = False
    policy: PolicyName = "lru"
    prefetch: PrefetchName = "measured"
    on_placed: Callable[[PlacedModel], None] = _ignore

    @classmethod
    def of(cls, memory: "int | MemoryOptions | None") -> "MemoryOptions":
        """Take bytes as the budget alone, and None as none."""
        return memory if isinstance(memory, MemoryOptions) else cls(budget=memory)


def fits(stored: GGUFModel) -> bool:
    """Tell whether a model's file is so much smaller than what is free that nobody needs to look closer."""
    return 1.5 * sum(tensor.size for tensor in stored.file.tensors.values()) < free_bytes()


def place(stored: GGUFModel, options: MemoryOptions, context: int | None) -> PlacedModel:
    """Decide what lies where; where some of it stays on disk, memory and disk are measured first.

    Raises:
        UsageError: where the model does not fit the budget, with what would.
        MoekitError: where the file cannot be read.
    """
    memory = model_memory(stored, every_row=options.every_row)
    if memory.converted:
        import torch  # noqa: F401 -- what converts them, and takes memory of its own
    resident = resident_bytes()
    budget = default_budget(resident) if options.budget is None else options.budget
    placement = solve(
        memory,
        budget=budget,
        resident=resident,
        context=context,
        sequences=options.sequences,
        is_free=options.budget is None,
    )
    bandwidths = speed = None
    if placement.streams:
        largest = max(_streamed_spans(memory, placement), key=lambda span: span.size)
        bandwidths = measure_bandwidths(stored.file.paths[largest.file], min(largest.size, _LONGEST_PIECE))
        speed = predict(memory, placement, bandwidths)
    return PlacedModel(
        memory=memory,
        placement=placement,
        policy=options.policy,
        prefetch=options.prefetch,
        bandwidths=bandwidths,
        speed=speed,
    )


def _streamed_spans(memory: ModelMemory, placement: Placement) -> Iterator[FileSpan]:
    """Give the matrices that are read from disk, of a layer's experts those of the first."""
    for layer in memory.layers if placement.passing else ():
        yield from (span for span in (layer.spans[0] if layer else ()) if span is not None)
    for block, kept in zip(memory.blocks, placement.kept_blocks, strict=True):
        yield from (span for span in block.spans.matrices if span is not None and not kept)
