"""Where each part of a model lies, so that all of them together stay within a budget.

What every token reads comes first: the dense part, the KV cache and the memory that is computed in. What is left is for
experts, in every layer as many as its share of what they are worth; the others are read from disk when they are needed.
Where the dense part alone is too large, some of its attention and ffns are read for each token, through a ring.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from moekit.core.errors import UsageError
from moekit.core.formatting import bytes_text
from moekit.placement.model_memory import LayerExperts, ModelMemory

PASSING = 3
"""Places for experts that pass through: one is computed with, one is being read, one is about to be."""
# The C library, the interpreter and the page tables take some more than what they were asked for.
_MARGIN_SHARE, _MARGIN_BYTES = 0.01, 24 << 20
# What a process has by itself differs a little from one start to the next.
_VARIES = 4 << 20
_LEAST_CONTEXT = 256
_RING_BLOCKS = 2
"""Of the largest size: one is computed with while another is read."""
_GOLDEN = (5**0.5 - 1) / 2
_CACHE_SHARE = 0.25
"""Of the budget, what a KV cache may take where nobody asked for a context."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What lies where.

    Attributes:
        budget: bytes that nothing may go beyond.
        resident_bytes: what the process has before the model is loaded.
        dense_bytes: what is in memory in any case.
        kept_blocks: of each attention and ffn that could be on disk, whether it is in memory.
        block_bytes: what those that are take.
        ring_bytes: what the others pass through; 0 where there are none.
        cache_bytes: of the KV caches once they are full.
        work_bytes: what is computed in.
        places: of each layer, how many of its experts have a place in memory.
        place_bytes: what they take.
        passing: places for experts that pass through.
        passing_bytes: what they take.
        context: the most tokens of a sequence.
        margin_bytes: what is kept back.
    """

    budget: int
    resident_bytes: int
    dense_bytes: int
    kept_blocks: tuple[bool, ...]
    block_bytes: int
    ring_bytes: int
    cache_bytes: int
    work_bytes: int
    places: tuple[int, ...]
    place_bytes: int
    passing: int
    passing_bytes: int
    context: int
    margin_bytes: int

    @property
    def used_bytes(self) -> int:
        """All of it together."""
        weights = self.dense_bytes + self.block_bytes + self.ring_bytes + self.place_bytes + self.passing_bytes
        return self.resident_bytes + weights + self.cache_bytes + self.work_bytes + self.margin_bytes

    @property
    def streams(self) -> bool:
        """Whether some of it is read from disk while it computes."""
        return self.passing > 0 or self.ring_bytes > 0


def solve(
    memory: ModelMemory,
    *,
    budget: int,
    resident: int,
    context: int | None = None,
    sequences: int = 1,
    is_free: bool = False,
) -> Placement:
    """Place a model.

    Args:
        memory: what its parts take.
        budget: bytes for the whole process.
        resident: what the process has already.
        context: the most tokens of a sequence; None for as many as the model's, of which less are taken where the
            budget is small.
        sequences: how many are generated at a time.
        is_free: whether the budget is what is free, so that more would be of no use.

    Raises:
        UsageError: where it does not fit, with what would.
    """
    chosen = context or _context_within(memory, budget, resident, sequences)
    free = budget - _fixed(memory, budget, resident, chosen, sequences)
    fits = memory.expert_bytes + memory.block_bytes <= free
    passing = PASSING if memory.expert_bytes and not fits else 0
    free -= passing * memory.largest_expert
    ring = 0 if memory.block_bytes <= free else _ring_bytes(memory)
    free -= ring
    if free < 0:
        raise _too_small(memory, budget, resident, context, sequences, is_free)
    kept = keep_blocks([block.bytes for block in memory.blocks], free)
    block_bytes = sum(block.bytes for block, is_kept in zip(memory.blocks, kept, strict=True) if is_kept)
    places = share(memory.layers, free - block_bytes)
    return Placement(
        budget=budget,
        resident_bytes=resident,
        dense_bytes=memory.dense_bytes,
        kept_blocks=kept,
        block_bytes=block_bytes,
        ring_bytes=ring,
        cache_bytes=memory.cache_bytes(chosen, sequences),
        work_bytes=memory.work_bytes(chosen, sequences),
        places=places,
        place_bytes=sum(count * layer.bytes for count, layer in zip(places, memory.layers, strict=True) if layer),
        passing=passing,
        passing_bytes=passing * memory.largest_expert,
        context=chosen,
        margin_bytes=_margin(budget),
    )


def keep_blocks(sizes: Sequence[int], free: int) -> tuple[bool, ...]:
    """Choose the blocks that stay in memory, as many as so many bytes hold.

    A token uses each of them once: all are worth their bytes. They are chosen from all over the model (by the golden
    ratio's multiples), so that the disk can read the others while these are computed.
    """
    kept = [False] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: index * _GOLDEN % 1):
        if sizes[index] <= free:
            kept[index] = True
            free -= sizes[index]
    return tuple(kept)


def share(layers: Sequence[LayerExperts | None], free: int) -> tuple[int, ...]:
    """Share bytes among the layers: how many experts of each get a place.

    A place is worth the reading that it saves. Of a layer where a token uses k of E experts and p have a place, the
    share of uses that find theirs is taken to be 1 - (1 - p / E)^2, between what it is for a router without any habits
    (p / E) and what was published of trained ones (0.67 for a quarter, 0.89 for half). So the worth of the next place
    is k / E * (1 - p / E) of its own bytes, whatever those are.
    """
    places = [0] * len(layers)
    # The first of equals is the first layer.
    queue = [(-_worth(layer, 0), index) for index, layer in enumerate(layers) if layer is not None]
    heapq.heapify(queue)
    while queue:
        _, index = heapq.heappop(queue)
        layer = layers[index]
        assert layer is not None
        if layer.bytes > free:
            continue
        free -= layer.bytes
        places[index] += 1
        if places[index] < len(layer.spans):
            heapq.heappush(queue, (-_worth(layer, places[index]), index))
    return tuple(places)


def _worth(layer: LayerExperts, places: int) -> float:
    experts = len(layer.spans)
    return layer.top_k / experts * (1 - places / experts)


def _ring_bytes(memory: ModelMemory) -> int:
    return _RING_BLOCKS * max((block.bytes for block in memory.blocks), default=0)


def _margin(budget: int) -> int:
    return _MARGIN_BYTES + int(_MARGIN_SHARE * budget)


def _fixed(memory: ModelMemory, budget: int, resident: int, context: int, sequences: int) -> int:
    """Count what must be in memory whatever is read from disk."""
    kept = memory.cache_bytes(context, sequences) + memory.work_bytes(context, sequences)
    return resident + memory.dense_bytes + kept + _margin(budget)


def _context_within(memory: ModelMemory, budget: int, resident: int, sequences: int) -> int:
    """Choose a context: the model's, or what leaves most of the budget to the weights.

    A shorter one comes before blocks that are read for every token.
    """
    all_blocks = least_budget(memory, resident, _LEAST_CONTEXT, sequences, with_blocks=True) <= budget

    def too_long(context: int) -> bool:
        cache = memory.cache_bytes(context, sequences)
        needed = least_budget(memory, resident, context, sequences, with_blocks=all_blocks)
        return cache > _CACHE_SHARE * budget or needed > budget

    most = memory.config.context
    while most > _LEAST_CONTEXT and too_long(most):
        most = max(_LEAST_CONTEXT, most // 2)
    return most


def least_budget(memory: ModelMemory, resident: int, context: int, sequences: int, *, with_blocks: bool = False) -> int:
    """Count what the model takes with nothing but what passes through; with_blocks: and all attention and ffns."""
    # What is smaller than the room that it would pass through is in memory.
    dense = memory.block_bytes if with_blocks else min(_ring_bytes(memory), memory.block_bytes)
    passing = PASSING * memory.largest_expert
    if dense == memory.block_bytes:
        passing = min(passing, memory.expert_bytes)
    without_share = _fixed(memory, 0, resident, context, sequences) + dense + passing
    return int(without_share / (1 - _MARGIN_SHARE)) + 1


def _too_small(
    memory: ModelMemory, budget: int, resident: int, context: int | None, sequences: int, is_free: bool
) -> UsageError:
    """Say what does not fit, and what would."""
    asked = context or min(_LEAST_CONTEXT, memory.config.context)
    needed = least_budget(memory, resident, asked, sequences)
    whole = ""
    if memory.converted:
        whole = f" (matrices of type {', '.join(memory.converted)} become bf16 and stay in memory)"
    sentence = (
        f"The model does not fit {bytes_text(budget)}: what cannot be left on disk takes "
        f"{bytes_text(memory.dense_bytes)}{whole}, "
        f"the KV cache of {asked:,} tokens {bytes_text(memory.cache_bytes(asked, sequences))}, and with all else "
        f"{bytes_text(needed)} are the least; "
    )
    sentence += "no more is free" if is_free else f"give --memory {math.ceil((needed + _VARIES) / 1e6)}MB"
    shorter = _LEAST_CONTEXT
    if asked > shorter and least_budget(memory, resident, shorter, sequences) <= budget:
        while shorter * 2 < asked and least_budget(memory, resident, shorter * 2, sequences) <= budget:
            shorter *= 2
        sentence += f", or --context {shorter}"
    return UsageError(f"{sentence}.")
