"""The types of options: each reads what people type, and says in their words what it must be instead."""

import math
from collections.abc import Iterable
from typing import Any

import click

from moekit.core.errors import did_you_mean
from moekit.kernels.packed.block_types import BLOCK_TYPES_BY_NAME, block_type_name

_LARGEST = 2**31 - 1


class WholeNumber(click.ParamType[int]):
    """A whole number within bounds, which are part of it."""

    name = "N"

    def __init__(self, at_least: int = 0, at_most: int = _LARGEST) -> None:
        self.at_least, self.at_most = at_least, at_most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a number, or fail with what it must be."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"must be a whole number, not {value!r}", param, ctx)
        if number < self.at_least:
            self.fail(f"must be {self.at_least} or more, not {number}", param, ctx)
        if number > self.at_most:
            self.fail(f"must be at most {self.at_most}, not {value}", param, ctx)
        return number


class Number(click.ParamType[float]):
    """A finite number of `at_least` or more."""

    name = "X"

    def __init__(self, at_least: float = -math.inf) -> None:
        self.at_least = at_least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, or fail with what it must be."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"must be a number, not {value!r}", param, ctx)
        if not math.isfinite(number):
            self.fail(f"must be a finite number, not {value}", param, ctx)
        if number < self.at_least:
            self.fail(f"must be {self.at_least:g} or more, not {value}", param, ctx)
        return number


class OneOf(click.Choice[str]):
    """One of several names, in any case."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(tuple(names), case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the name, or fail with the nearest one, or all of them."""
        name = str(value).lower()
        if name not in self.choices:
            self.fail(f"there is no {value!r}; {did_you_mean(name, self.choices)}", param, ctx)
        return name


class BlockTypeName(OneOf):
    """A type of packed matrices, as moekit or another program spells it; of those that moekit computes with."""

    def __init__(self, names: Iterable[str] = BLOCK_TYPES_BY_NAME) -> None:
        super().__init__(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give moekit's name of the type, or fail with the nearest one."""
        return super().convert(block_type_name(str(value)), param, ctx)
