"""Lanes: groups of cores, in each of which one run is trained at a time."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from moekit.comparison.spec.comparison_plan import PlannedContestant, PlannedLanes
from moekit.comparison.spec.model_costs import costs_of
from moekit.config import ModelConfig
from moekit.core import hardware
from moekit.training import TrainingConfig

# Of the memory that is free, what runs may take together: the rest is for the system, and for what was not foreseen.
_USABLE_MEMORY = 0.8


@dataclass(frozen=True)
class Lane:
    """Where a run is trained.

    cores: those it is held to, none where the system cannot do that. threads: None for as many as torch takes.
    """

    cores: tuple[int, ...] = ()
    threads: int | None = None

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Let processes that are started in the block, by this thread, stay on the lane's cores."""
        if not self.cores:
            yield
            return
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self.cores)
            yield
        finally:
            os.sched_setaffinity(0, before)


def possible_lanes(cores: int, runs: int) -> list[PlannedLanes]:
    """Give the ways to cut `cores` into lanes for `runs` runs, with the most lanes first.

    Lanes have 1, 2, 4, … threads, or all cores; of those that make as many lanes, the one with the most threads.
    """
    by_count: dict[int, PlannedLanes] = {}
    threads = 1
    while threads < cores:
        count = min(cores // threads, runs)
        by_count[count] = PlannedLanes(count=count, threads=threads)
        threads *= 2
    by_count[1] = PlannedLanes(count=1, threads=cores)
    return list(by_count.values())


def lanes_here(planned: PlannedLanes) -> list[Lane]:
    """Give the planned lanes, or where this machine has fewer cores than they need, as many as it has room for.

    A lane never has fewer threads than planned, for the bits of its runs: where there are too few cores for a single
    one, its threads share them.
    """
    if planned.threads is None:
        return [Lane()] * planned.count
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = max(1, min(planned.count, hardware.hardware().cores // planned.threads))
    if planned.threads > len(cores):
        return [Lane(threads=planned.threads)] * count
    groups = (cores[index * planned.threads : (index + 1) * planned.threads] for index in range(count))
    return [Lane(tuple(group), planned.threads) for group in groups]


def has_room_for(planned: PlannedLanes) -> bool:
    """Say whether this machine has the cores that the planned lanes need."""
    return planned.threads is None or planned.count * planned.threads <= hardware.hardware().cores


def fits_in_memory(lanes: int, run_bytes: Sequence[int]) -> bool:
    """Say whether the largest of these runs fit into the memory that is free now, one in each lane."""
    largest = sorted(run_bytes)[-lanes:]
    return sum(largest) <= _USABLE_MEMORY * psutil.virtual_memory().available


def memory_estimate(planned: PlannedContestant, training: TrainingConfig) -> int:
    """Estimate, generously, the memory of a run that nobody has measured.

    What a process holds before there is a model; weights, gradients, two moments and the average in fp32, with one
    more copy of them on the way; and for each token of a step what the layers keep for the backward pass.
    """
    config = planned.config
    costs = costs_of(config, training.context)
    held = 500_000_000 + 24 * (costs.params_total or 0)
    tokens = training.micro_sequences * training.context
    if isinstance(config, ModelConfig):
        # 4 bytes for some 30 vectors of the width in a layer, attention's and those of the active experts included.
        held += tokens * (120 * config.width * len(config.layers) + 4 * costs.params_active // config.width)
        held += 16 * tokens * config.vocab_size
    return held
