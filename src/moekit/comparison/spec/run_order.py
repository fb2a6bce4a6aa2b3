"""In what order a comparison's runs are trained, and how long they take together on several lanes.

No contestant has a fixed place or fixed company: what else is computed on a machine moves the seconds of a run, and so
does the time of day. The order of each seed is a row of a Williams design, a Latin square in which every contestant
follows every other equally often (E. J. Williams, Experimental designs balanced for the estimation of residual effects
of treatments, Australian Journal of Scientific Research 2, 1949). In the last seed the longest runs come first, so that
all lanes end together.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

ORDER_TEXT = (
    "seed by seed, the contestants of each seed in another order, so that none has a fixed place or fixed company; in "
    "the last seed the longest runs come first"
)


class PlannedRun(NamedTuple):
    """One run of a comparison: a contestant's name and a seed."""

    contestant: str
    seed: int

    def __str__(self) -> str:
        """Name the run as people read it."""
        return f"{self.contestant}, seed {self.seed}"


def ordered_runs(contestants: Sequence[str], seeds: Sequence[int], seconds: Mapping[str, float]) -> list[PlannedRun]:
    """Give every run once, in the order in which lanes take them.

    Args:
        contestants: their names, in the plan's order.
        seeds: of each contestant, in order.
        seconds: of a run of each contestant, in any unit.
    """
    order = []
    for row, seed in enumerate(seeds):
        names = [contestants[index] for index in williams_row(len(contestants), row)]
        if row == len(seeds) - 1:
            names.sort(key=lambda name: -seconds[name])
        order += [PlannedRun(name, seed) for name in names]
    return order


def williams_row(count: int, row: int) -> list[int]:
    """Give a row of the Williams design of `count` treatments: 0, 1, n - 1, 2, n - 2, … moved on by `row`."""
    first = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    return [(treatment + row) % count for treatment in first]


def seconds_together(runs: Iterable[float], lanes: int) -> float:
    """Give the time from the first start to the last end of runs that take so long each.

    They begin in this order, each in the lane that is free first.
    """
    free_at = [0.0] * lanes
    for seconds in runs:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)
