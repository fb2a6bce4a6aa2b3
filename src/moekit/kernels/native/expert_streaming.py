"""Experts that stay on disk: where they lie, how many have a place in memory, and what was counted of them.

The compiled side reads them around the page cache, while others are computed (`native/streaming/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moekit.kernels.native.direct_reading import FileSpan, native_span, reading
from moekit.kernels.native.module import native

PolicyName = Literal["lru", "lfu", "lfru", "static"]
PrefetchName = Literal["off", "on", "measured"]


ExpertSpans = tuple[FileSpan | None, FileSpan, FileSpan]
"""Where the gate, up and down of an expert lie; None where it has no gate."""


@dataclass(frozen=True, kw_only=True)
class ExpertStreaming:
    """Experts that are read when a layer needs them.

    Attributes:
        files: those that the experts lie in.
        experts: of each layer those that are streamed; none where it has none, or they are in memory anyway.
        places: of each layer, how many of them have a place in memory.
        policy: which of them keep it. lru: the one that was used longest ago goes; lfu: the one that was used least
            often; lfru: the same, where a use counts for half after 64 tokens; static: those that came first stay.
        prefetch: whether steps read experts that the next layer will probably use. measured: where that is faster.
        passing: places for experts that stay for as long as they are computed with, shared by all layers.
        threads: those that read.
        direct: whether to read around the page cache, where the file system allows that.
    """

    files: Sequence[Path]
    experts: Sequence[Sequence[ExpertSpans]]
    places: Sequence[int]
    policy: PolicyName = "lru"
    prefetch: PrefetchName = "measured"
    passing: int = 2
    threads: int = 4
    direct: bool = True


@dataclass(frozen=True, kw_only=True)
class StoreCounts:
    """What was counted since a store was made.

    Attributes:
        hits: uses of an expert that was in memory.
        misses: uses that had to wait for the disk, wholly or in part.
        foreseen: experts that were read before they were asked for.
        foreseen_used: those of them that the next pass over their layer did ask for.
        bytes: that were read.
        busy_seconds: in which the disk was reading.
        stall_seconds: in which nothing could be computed.
    """

    hits: int
    misses: int
    foreseen: int
    foreseen_used: int
    bytes: int
    busy_seconds: float
    stall_seconds: float


def native_store(module: Any, streaming: ExpertStreaming) -> Any:
    """Make the compiled store. Raises MoekitError where a file cannot be read or memory cannot be taken."""
    layers = [
        module.StreamedLayer([[native_span(module, span) for span in expert] for expert in experts], places)
        for experts, places in zip(streaming.experts, streaming.places, strict=True)
    ]
    with reading():
        return module.ExpertStore(
            paths=[str(path) for path in streaming.files],
            layers=layers,
            policy=getattr(module.PolicyKind, streaming.policy),
            passing=streaming.passing,
            threads=streaming.threads,
            direct=streaming.direct,
        )


def store_counts(store: Any) -> StoreCounts:
    """Give what a compiled store has counted."""
    counted = store.counts
    return StoreCounts(**{name: getattr(counted, name) for name in StoreCounts.__dataclass_fields__})


def simulated_hits(policy: PolicyName, experts: int, places: int, passes: Sequence[Sequence[int]]) -> int:
    """Count the uses that find their expert in memory, in a layer of so many experts and places.

    The decisions are those of the store. passes: the experts that each pass over the layer uses, none of them twice.
    """
    module = native()
    return int(module.simulate_hits(getattr(module.PolicyKind, policy), experts, places, [list(one) for one in passes]))
