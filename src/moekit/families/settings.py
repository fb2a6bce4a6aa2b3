"""The settings of a config.json, read one by one; errors name what is missing, of the wrong kind or not supported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from moekit.core.errors import MoekitError

T = TypeVar("T")


class Settings:
    """A config.json. Every method raises MoekitError naming the file and the key."""

    def __init__(self, values: dict[str, Any], file: Path) -> None:
        self.values, self.file = values, file

    def completed(
        self, defaults: Mapping[str, Any], nulls: Mapping[str, Any], aliases: Mapping[str, str]
    ) -> "Settings":
        """Give the settings with every key of `defaults`, so that what reads them needs no defaults of its own.

        Args:
            defaults: what a key that is missing is; None where it follows from others, or there is no such thing.
            nulls: what a key that is null is; one that is not listed may not be null.
            aliases: other names of keys, which count where both are given, as in transformers.
        """
        values = {key: value for key, value in self.values.items() if key not in aliases}
        values |= {key: self.values[alias] for alias, key in aliases.items() if alias in self.values}
        for key, default in defaults.items():
            if key not in values:
                values[key] = default
            elif values[key] is None and key not in nulls:
                raise self.problem(key, "is null, which says nothing")
            elif values[key] is None:
                values[key] = nulls[key]
        return Settings(values, self.file)

    def integer(self, key: str, default: int | None = None) -> int:
        """Read the integer at `key`, or the default where it is missing or null."""
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.problem(key, f"must be an integer, not {_shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Read the number at `key`, or the default where it is missing or null."""
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.problem(key, f"must be a number, not {_shown(value)}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Give the true or false at `key`, or the default where it is missing or null."""
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise self.problem(key, f"must be true or false, not {_shown(value)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Give the text at `key`, or the default where it is missing or null."""
        value = self._given(key, default)
        if not isinstance(value, str):
            raise self.problem(key, f"must be text, not {_shown(value)}")
        return value

    def choice(self, key: str, of: dict[str, T], default: str | None = None) -> T:
        """Give what the text at `key` stands for; a text that stands for nothing is not supported."""
        value = self.text(key, default)
        if value not in of:
            raise self.problem(key, f"is {_shown(value)}, and moekit has {', '.join(sorted(of))}")
        return of[value]

    def inner(self, key: str) -> "Settings | None":
        """Read the object at `key`; None where it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.problem(key, f"must be an object, not {_shown(value)}")
        return Settings(value, self.file)

    def has(self, key: str) -> bool:
        """Tell whether something other than null stands there."""
        return self.values.get(key) is not None

    def require(self, key: str, value: object) -> None:
        """Raise unless what stands at `key`, if anything does, is `value`: anything else is not supported."""
        if self.has(key) and self.values[key] != value:
            raise self.problem(key, f"is {_shown(self.values[key])}, and moekit has {_shown(value)} alone")

    def problem(self, key: str, text: str) -> MoekitError:
        """Make the error that names the file and the key."""
        return MoekitError(f"{self.file}: {key} {text}.")

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.problem(key, "is missing")
        return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
