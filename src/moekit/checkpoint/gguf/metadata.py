"""The metadata of a GGUF file by key; errors name a key that is missing or of the wrong kind."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from moekit.checkpoint.gguf.values import Strings, Value
from moekit.core.errors import MoekitError
from moekit.core.formatting import printable

T = TypeVar("T", int, float, bool, str)

_KINDS: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


class Metadata(Mapping[str, Value]):
    """Values by key. The methods raise MoekitError naming the file and the key."""

    def __init__(self, values: Mapping[str, Value], path: Path) -> None:
        self._values, self.path = values, path

    def get_as(self, kind: type[T], key: str, default: T | None = None) -> T:
        """Give the value at `key`, or the default where there is none; `kind` is the type that it has to have."""
        found: Any = self._values.get(key, default)
        if kind is float and type(found) is int:
            found = float(found)
        if type(found) is not kind:
            raise self.problem(key, "is missing" if found is None else f"must be {_KINDS[kind]}, not {shown(found)}")
        return found

    def numbers(self, key: str) -> np.ndarray | None:
        """Give the array of numbers at `key`, a view of the file; None where there is none."""
        found = self._values.get(key)
        if found is not None and not isinstance(found, np.ndarray):
            raise self.problem(key, f"must be an array of numbers, not {shown(found)}")
        return found

    def strings(self, key: str) -> Strings | None:
        """Give the array of texts at `key`; None where there is none."""
        found = self._values.get(key)
        if found is not None and not isinstance(found, Strings):
            raise self.problem(key, f"must be an array of texts, not {shown(found)}")
        return found

    def problem(self, key: str, text: str) -> MoekitError:
        """Make the error that says something about a key."""
        return MoekitError(f"{self.path}: {short(key)} {text}.")

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def shown(value: object) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Strings | np.ndarray):
        return f"an array of {len(value)}"
    text = short(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def short(text: str) -> str:
    """Shorten what stands in a file to a text that is safe to show."""
    return printable(text[:200])
