"""Attention and ffns that stay on disk: where they lie, and the ring that they pass through.

Every token uses all of them, in one order. So no cache that is smaller than they are would ever have what is needed
next; the compiled side reads ahead in that order instead, while it computes (`native/streaming/block_ring.h`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moekit.kernels.native.direct_reading import FileSpan, native_span, reading

BlockKind = Literal["attention", "ffn"]


@dataclass(frozen=True, kw_only=True)
class BlockSpans:
    """Where the matrices of a layer's attention or of its dense ffn lie.

    Attributes:
        layer: its index.
        kind: which of the two it is.
        matrices: query, key, value and output; or gate, up and down, None for a gate that there is not.
    """

    layer: int
    kind: BlockKind
    matrices: tuple[FileSpan | None, ...]


@dataclass(frozen=True, kw_only=True)
class BlockStreaming:
    """Blocks that are read each time they are needed.

    Attributes:
        files: those that the blocks lie in.
        blocks: in the order of their use.
        ring_bytes: what they pass through; with room for two, one is read while another is computed.
        threads: those that read.
        direct: whether to read around the page cache, where the file system allows that.
    """

    files: Sequence[Path]
    blocks: Sequence[BlockSpans]
    ring_bytes: int
    threads: int = 4
    direct: bool = True


@dataclass(frozen=True, kw_only=True)
class RingCounts:
    """What was counted since a ring was made.

    Attributes:
        bytes: that were read.
        busy_seconds: in which the disk was reading.
        stall_seconds: in which nothing could be computed.
    """

    bytes: int
    busy_seconds: float
    stall_seconds: float


def native_ring(module: Any, streaming: BlockStreaming) -> Any:
    """Make the compiled ring. Raises MoekitError where a file cannot be read or memory cannot be taken."""
    blocks = [
        module.StreamedBlock(
            block.layer, getattr(module.BlockKind, block.kind), [native_span(module, span) for span in block.matrices]
        )
        for block in streaming.blocks
    ]
    with reading():
        return module.BlockRing(
            paths=[str(path) for path in streaming.files],
            blocks=blocks,
            bytes=streaming.ring_bytes,
            threads=streaming.threads,
            direct=streaming.direct,
        )


def ring_counts(ring: Any) -> RingCounts:
    """Give what a compiled ring has counted."""
    counted = ring.counts
    return RingCounts(**{name: getattr(counted, name) for name in RingCounts.__dataclass_fields__})
