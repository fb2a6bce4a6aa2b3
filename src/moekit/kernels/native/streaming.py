"""What of a model stays on disk and is read while it computes."""

from dataclasses import dataclass
from typing import Any

from moekit.kernels.native.block_streaming import BlockStreaming, RingCounts, native_ring, ring_counts
from moekit.kernels.native.expert_streaming import ExpertStreaming, StoreCounts, native_store, store_counts


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """Experts, of which a token uses a few, and blocks, of which it uses all; None where all of a kind is in memory."""

    experts: ExpertStreaming | None = None
    blocks: BlockStreaming | None = None


@dataclass(frozen=True, kw_only=True)
class StreamingCounts:
    """What was counted of either."""

    experts: StoreCounts | None
    blocks: RingCounts | None


class NativeStreaming:
    """Hold what the compiled side reads with: a store of experts, a ring of blocks, either or None.

    Raises:
        MoekitError: where a file cannot be read.
    """

    def __init__(self, module: Any, streaming: Streaming) -> None:
        experts, blocks = streaming.experts, streaming.blocks
        self.store = None if experts is None else native_store(module, experts)
        self.prefetch = getattr(module.Prefetch, "off" if experts is None else experts.prefetch)
        self.ring = None if blocks is None else native_ring(module, blocks)

    def counts(self) -> StreamingCounts:
        """Give what was counted so far."""
        return StreamingCounts(
            experts=None if self.store is None else store_counts(self.store),
            blocks=None if self.ring is None else ring_counts(self.ring),
        )
