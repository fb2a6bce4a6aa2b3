"""Noise on experts, drawn as mergekit draws it, in whatever order tensors are written."""

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Standard normal noise of that shape and type."""

    key: Hashable
    shape: tuple[int, ...]
    dtype: torch.dtype

    def take(self, generator: torch.Generator) -> Tensor:
        """The next numbers of the generator."""
        return torch.randn(self.shape, dtype=self.dtype, generator=generator)


class Noise:
    """A row of draws that follow each other from one generator, any of which can be had again.

    The generator's state before a draw (5 kB) is remembered once it is known; a draw whose state is not known yet takes
    those between, so that reading in nearly the same order, as writing does, costs little more than each draw once.
    """

    def __init__(self, generator: torch.Generator, draws: Sequence[Draw]) -> None:
        self._draws = draws
        self._places = {draw.key: place for place, draw in enumerate(draws)}
        self._known = [0]
        self._states = {0: generator.get_state()}

    def of(self, key: Hashable) -> Tensor:
        """The numbers of that draw."""
        place = self._places[key]
        first = self._known[bisect.bisect_right(self._known, place) - 1]
        generator = torch.Generator()
        generator.set_state(self._states[first])
        for before in range(first, place):
            self._draws[before].take(generator)
            self._remember(before + 1, generator)
        numbers = self._draws[place].take(generator)
        self._remember(place + 1, generator)
        return numbers

    def _remember(self, place: int, generator: torch.Generator) -> None:
        if place not in self._states:
            self._states[place] = generator.get_state()
            bisect.insort(self._known, place)
