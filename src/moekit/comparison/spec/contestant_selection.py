"""Whom a user asked for: contestants by their names, or from a YAML file that names or describes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from moekit.comparison.spec.contestants import (
    SIZES,
    Contestant,
    Size,
    default_contestants,
    default_set,
    own_contestants,
    router_contestants,
    upcycled_contestant,
)
from moekit.config import Config, ModelConfig
from moekit.core.errors import UsageError, did_you_mean
from moekit.core.validation import problem_of, read_yaml, validate


class ContestantsFile(Config):
    """What a YAML file of contestants may say."""

    contestants: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)]
    baseline: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChosenContestants:
    """Who takes part, who does too where a budget allows, and the name of whom the others are held against."""

    required: list[Contestant]
    optional: list[Contestant]
    baseline: str


def size_named(name: str) -> Size:
    """Find the size of that name; raises UsageError with the nearest one where there is none."""
    if name not in SIZES:
        raise UsageError(f"There is no size {name!r}: {did_you_mean(name, SIZES)}")
    return SIZES[name]


def choose_contestants(
    asked: str | Path | Sequence[str | Contestant] | None, size: Size, *, baseline: str | None = None
) -> ChosenContestants:
    """Find the contestants that are asked for.

    Args:
        asked: a YAML file; or names of built-in contestants, and contestants of the caller's own; or None for the
            default set.
        size: that they take part in.
        baseline: the name of one of them; None for the one that the file names, or else the first.

    Raises:
        UsageError: naming what is wrong and the nearest valid name.
    """
    optional: list[Contestant] = []
    if asked is None:
        required, optional = default_set(size)
    elif isinstance(asked, str | Path):
        required, named = read_contestants(Path(asked), size)
        baseline = baseline or named
    else:
        required = [
            pick_contestant(one, size)
            if isinstance(one, str)
            else _checked(one, size, where=f"The contestant {one.name!r}")
            for one in asked
        ]
        if not required:
            raise UsageError("There is no contestant; name at least one.")
    return ChosenContestants(required=required, optional=optional, baseline=check_set(required, baseline))


def read_contestants(path: Path, size: Size) -> tuple[list[Contestant], str]:
    """Read contestants and the baseline's name from a YAML file, where a bare name stands for a built-in one.

    Raises UsageError naming the file, the key, and the nearest valid name.
    """
    listed = validate(ContestantsFile, read_yaml(path), where=str(path))
    contestants = [
        pick_contestant(described, size)
        if isinstance(described, str)
        else _described(described, size, where=f"{path}, contestants[{index}]")
        for index, described in enumerate(listed.contestants)
    ]
    return contestants, check_set(contestants, listed.baseline)


def _described(described: dict[str, Any], size: Size, where: str) -> Contestant:
    """Read one contestant as a file describes it."""
    return _checked(validate(Contestant, described, where=where), size, where)


def _checked(contestant: Contestant, size: Size, where: str) -> Contestant:
    """Give the contestant; raises UsageError with `where` where its model as a whole is wrong in that size."""
    try:
        contestant.config(size)
    except ValidationError as error:
        raise UsageError(f"{where}: {problem_of(error, ModelConfig)}") from error
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
    if contestant.upcycle is not None:
        contestant.upcycled(size, where=f"{where}.upcycle")
    return contestant


def pick_contestant(name: str, size: Size) -> Contestant:
    """Find the contestant of any built-in set; raises UsageError with the nearest name where there is none."""
    known = default_contestants(size) | own_contestants(size) | router_contestants(size)
    known["upcycled"] = upcycled_contestant(size)
    if name not in known:
        raise UsageError(f"There is no contestant {name!r}: {did_you_mean(name, known)}")
    return known[name]


def check_set(contestants: list[Contestant], baseline: str | None) -> str:
    """Give the baseline's name, by default the first contestant's.

    Raises UsageError where two contestants have one name, or the baseline is none of them.
    """
    names = [contestant.name for contestant in contestants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"The contestant {twice!r} is there twice; give each its own name.")
    if baseline is not None and baseline not in names:
        raise UsageError(f"The baseline {baseline!r} is not among the contestants: {did_you_mean(baseline, names)}")
    return baseline or names[0]
