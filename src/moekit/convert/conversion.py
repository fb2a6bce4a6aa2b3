"""What every conversion is: a plan with every problem, a run that leaves a whole result or nothing, and its proof."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from moekit.checkpoint.write_weights import check_replaceable
from moekit.convert.storage.partial_folder import partial_folder
from moekit.core import files
from moekit.core.errors import UsageError
from moekit.core.formatting import bytes_text
from moekit.core.progress import Progress, no_progress
from moekit.models.companions import copy_companions


class Refused(UsageError):
    """A conversion cannot be: all that was found wrong with its sources and its options, a sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(" ".join(self.problems))


class Problems(BaseModel):
    """All that can be said of a conversion that cannot be made."""

    problems: list[str]


class Conversion(Protocol):
    """A conversion whose sources and options fit each other; what makes it raises `Refused` where they do not."""

    def plan(self, out: Path) -> Any:
        """Say what writing to `out` takes, and as `problems` what stands in the way, without reading a weight."""
        ...

    def run(self, out: Path, progress: Progress = no_progress) -> Any:
        """Write the result and give it its name once it is whole; a run that was stopped goes on with the same call.

        Raises UsageError where `out` is taken, MoekitError where the disk is full or a source is damaged.
        """
        ...

    def verify(self, out: Path) -> Any:
        """Compare what lies in `out` with what this conversion gives; MoekitError where it is something else."""
        ...


def taken(out: Path) -> list[str]:
    """Say that something stands in the place of a result."""
    try:
        check_replaceable(out)
    except UsageError as error:
        return [str(error)]
    return []


def folder_problems(out: Path, needed: int) -> list[str]:
    """Say why a folder of so many bytes cannot be written: `out` is taken, or the disk is too small."""
    if problems := taken(out):
        return problems
    held = sum(path.stat().st_size for path in partial_folder(out).glob("*") if path.is_file())
    free = files.free_bytes(out)
    if needed - held > free:
        return [f"{out} needs {bytes_text(needed - held)} more and the disk has {bytes_text(free)} free."]
    return []


def write_beside(folder: Path, texts: Mapping[str, str], origin: Path) -> None:
    """Write texts by the names of their files, and copy the companions in `origin`, as they are."""
    for name, text in texts.items():
        files.write_text(folder / name, text)
    copy_companions(origin, folder)


def json_text(values: dict[str, Any]) -> str:
    """Give an object as it stands in a folder: sorted, so that the same values are the same bytes."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
