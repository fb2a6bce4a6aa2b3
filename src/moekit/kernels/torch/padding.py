"""Padding of experts' rows to sizes at which a CPU's matrix products are fast, and runs of experts computed together.

Two things cost more than the products themselves where experts are small. A call of a product takes 50 to 100 µs
whatever it multiplies, so neighbours of nearly equal load are filled up to the same number of rows and multiplied in
one batched product. And oneDNN, which multiplies bfloat16 on a CPU, compiles a program for each shape that it meets (1
to 3 ms) and keeps the last 1024: with every training step the experts' loads change, so almost every product would
compile. Numbers of rows are therefore rounded to few sizes.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch

from moekit.kernels.assignments import Assignments

_COMPILED_BY_SHAPE = (torch.bfloat16, torch.float16)
# Batches of few sizes too, the largest that the loads allow: every program takes about a megabyte.
_BATCHES = (16, 4)
# A batch saves each further expert its calls: so many of the forward pass's multiplications in rows of padding, by
# measurement; bfloat16, which is faster, and so others.
_SAVED_COMPILED, _SAVED = 12_000_000, 4_000_000
# Beyond this many rows a batch's activations leave the cache between one product and the next.
_MOST_ROWS = 4096


class Run(NamedTuple):
    """Experts first : first + experts, of `rows` rows each; the rows of the first one begin at row `begin`."""

    first: int
    experts: int
    rows: int
    begin: int

    @property
    def end(self) -> int:
        """The row after the run's last."""
        return self.begin + self.experts * self.rows


def padded(
    assignments: Assignments, device: torch.device, dtype: torch.dtype, multiplications_per_row: int
) -> tuple[Assignments, list[Run]]:
    """Fill up each expert's rows with padding, and cut the experts into runs.

    Padding assigns token 0 at weight 0. slot_S then names the true assignments only: it skips the padding.

    Args:
        assignments: what to pad.
        device: where the products run; only a CPU gets padding.
        dtype: the type that is multiplied.
        multiplications_per_row: what a row costs; 3 D F in a gated network.

    Returns:
        The padded assignments, and the runs; experts without work are in no run.
    """
    offsets = assignments.expert_offsets
    counts = [end - begin for begin, end in pairwise(offsets)]
    if device.type != "cpu":
        runs = runs_of(counts, most_waste=-1)
    elif dtype in _COMPILED_BY_SHAPE:
        rounded = [rounded_up(count) for count in counts]
        runs = runs_of(rounded, most_waste=_SAVED_COMPILED // multiplications_per_row)
    else:
        runs = runs_of(counts, most_waste=_SAVED // multiplications_per_row)
    sizes = [0] * len(counts)
    for run in runs:
        sizes[run.first : run.first + run.experts] = [run.rows] * run.experts
    if sizes == counts:
        return assignments, runs
    new_offsets = tuple(accumulate(sizes, initial=0))
    shift_E = torch.tensor(new_offsets[:-1]) - torch.tensor(offsets[:-1])
    position_S = torch.arange(offsets[-1]) + shift_E.repeat_interleave(torch.tensor(counts))
    token_S, weight_S = assignments.token_S, assignments.weight_S
    filled = Assignments(
        token_S.new_zeros(new_offsets[-1]).index_copy_(0, position_S, token_S),
        weight_S.new_zeros(new_offsets[-1]).index_copy(0, position_S, weight_S),
        new_offsets,
        position_S[assignments.slot_S],
        assignments.token_offsets_T,
    )
    return filled, runs


def runs_of(sizes: Sequence[int], most_waste: int) -> list[Run]:
    """Cut experts with so many rows each into runs of 1, 4 or 16 neighbours.

    Args:
        sizes: rows of each expert.
        most_waste: rows of padding that joining one more expert is worth; where it is negative, none is joined.
    """
    runs: list[Run] = []
    first = begin = 0
    while first < len(sizes):
        experts = next((n for n in _BATCHES if _worth_joining(sizes[first : first + n], n, most_waste)), 1)
        run = Run(first, experts, max(sizes[first : first + experts]), begin)
        if run.rows:
            runs.append(run)
        first, begin = first + experts, run.end
    return runs


def _worth_joining(sizes: Sequence[int], experts: int, most_waste: int) -> bool:
    """Tell whether so many experts are there, fit together, and waste no more rows than joining them saves."""
    if len(sizes) < experts or not min(sizes):
        return False
    rows = experts * max(sizes)
    return rows <= _MOST_ROWS and rows - sum(sizes) <= most_waste * (experts - 1)


def rounded_up(rows: int) -> int:
    """Round up to a multiple of 32, of 64 from 512, of 128 from 2048, of 256 from 4096 and so on.

    Fewer than 32 rows, as in generation, stay as they are.
    """
    if rows < 32:
        return rows
    step = 32 if rows < 512 else max(64, 1 << rows.bit_length() - 5)
    return -(-rows // step) * step
