"""Whom a user asked for: contestants by their names, or from a YAML file that names or describes them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from moekit.compare.spec.contestants import (
    Contestant,
    Size,
    default_contestants,
    own_contestants,
    router_contestants,
    upcycled_contestant,
)
from moekit.config import Config
from moekit.core.errors import UsageError, did_you_mean
from moekit.core.validation import read_yaml, validate


class ContestantsFile(Config):
    """What a YAML file of contestants may say."""

    contestants: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)]
    baseline: str | None = None


def read_contestants(path: Path, size: Size) -> tuple[list[Contestant], str]:
    """Contestants and the baseline's name from a YAML file, where a bare name stands for one of those here.

    Raises UsageError naming the file, the key, and the nearest valid name.
    """
    listed = validate(ContestantsFile, read_yaml(path), where=str(path))
    contestants = [
        pick_contestant(entry, size)
        if isinstance(entry, str)
        else _described(entry, size, where=f"{path}, contestants[{index}]")
        for index, entry in enumerate(listed.contestants)
    ]
    return contestants, check_set(contestants, listed.baseline)


def _described(entry: dict[str, Any], size: Size, where: str) -> Contestant:
    """What a file describes; what is wrong with the model as a whole is found here as well."""
    contestant = validate(Contestant, entry, where=where)
    try:
        contestant.config(size)
    except ValueError as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {problem}.") from error
    if contestant.upcycle is not None:
        contestant.upcycled(size, where=f"{where}.upcycle")
    return contestant


def pick_contestant(name: str, size: Size) -> Contestant:
    """The contestant of any set; raises UsageError with the nearest name where there is none."""
    known = default_contestants(size) | own_contestants(size) | router_contestants(size)
    known["upcycled"] = upcycled_contestant(size)
    if name not in known:
        raise UsageError(f"There is no contestant {name!r}: {did_you_mean(name, known)}")
    return known[name]


def check_set(contestants: list[Contestant], baseline: str | None) -> str:
    """The baseline's name (by default the first contestant's); raises UsageError where names clash or it is missing."""
    names = [contestant.name for contestant in contestants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"The contestant {twice!r} is there twice; give each its own name.")
    if baseline is not None and baseline not in names:
        raise UsageError(f"The baseline {baseline!r} is not among the contestants: {did_you_mean(baseline, names)}")
    return baseline or names[0]
