"""The folder in which a result grows beside its place, and the journal that lets a later run go on where one ended.

`<target>.partial/journal.jsonl` holds a line for the plan, then one for each position up to which a file is on disk.
A line is written after the bytes that it speaks of are synced, so it is true after a kill and after a power cut.
"""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moekit.checkpoint.write_weights import check_replaceable
from moekit.core import files
from moekit.core.errors import MoekitError, UsageError

JOURNAL = "journal.jsonl"
CHECKSUMS = "checksums.json"
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Reached:
    """How far a file is on disk: `position` bytes, whose CRC-32 is `crc`."""

    position: int = 0
    crc: int = 0


def partial_folder(target: Path) -> Path:
    """Give the folder in which the result for `target` grows."""
    target = Path(os.path.realpath(target))
    return target.with_name(f"{target.name}.partial")


class Partial:
    """The folder and its open journal; from `opened`."""

    def __init__(self, folder: Path, journal: BinaryIO, lines: list[dict[str, Any]]) -> None:
        self.folder, self._journal = folder, journal
        self._reached = {line["file"]: Reached(line["position"], line["crc"]) for line in lines if "file" in line}

    def reached(self, file: str) -> Reached:
        """Tell how far that file is on disk; a file that is shorter than the journal says begins anew."""
        reached, path = self._reached.get(file, Reached()), self.folder / file
        held = path.stat().st_size if path.is_file() else 0
        return reached if held >= reached.position else Reached()

    def record(self, file: str, reached: Reached) -> None:
        """Note that the file is on disk up to there; the caller has synced it."""
        self._reached[file] = reached
        self._write({"file": file, "position": reached.position, "crc": reached.crc})

    def begin(self, plan: str) -> None:
        """Start the journal of a plan."""
        self._write({"plan": plan})

    def finish(self, target: Path) -> None:
        """Write the checksums of all files, sync what is not yet on disk and give the folder its name.

        Raises UsageError where something has taken the place meanwhile.
        """
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        sums = {name: self._sum(name) for name in names if name not in (JOURNAL, CHECKSUMS)}
        (self.folder / CHECKSUMS).write_text(checksums_text(sums), encoding="utf-8")
        for path in [*self.folder.rglob("*"), self.folder]:
            files.sync(path)
        target = Path(os.path.realpath(target))
        check_replaceable(target)
        os.rename(self.folder, target)
        files.sync(target.parent)
        # Last, so that a kill in between leaves a folder that says whose it is (`already_finished`).
        (target / JOURNAL).unlink()

    def _sum(self, name: str) -> tuple[int, int]:
        path = self.folder / name
        size = path.stat().st_size
        reached = self._reached.get(name)
        crc = reached.crc if reached and reached.position == size else file_crc(path)
        return size, crc

    def _write(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())


def checksums_text(sums: Mapping[str, tuple[int, int]]) -> str:
    """Give the text of checksums.json, from files' bytes and CRC-32."""
    entries = {name: {"bytes": size, "crc32": f"{crc:08x}"} for name, (size, crc) in sorted(sums.items())}
    return json.dumps(entries, indent=2) + "\n"


@contextmanager
def opened(target: Path, plan: str) -> Iterator[Partial]:
    """Open the partial folder of `target`, new or as an earlier run of the same `plan` (any text) left it.

    Raises UsageError where `target` is taken or the folder holds another plan, MoekitError where a run is at work.
    """
    check_replaceable(Path(os.path.realpath(target)))
    folder = partial_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / JOURNAL).open("a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MoekitError(f"Another run is writing {folder}; wait for its end.") from error
        journal.seek(0)
        lines = _lines(journal.read())
        partial = Partial(folder, journal, lines)
        if not lines:
            # No whole line: an earlier run came no further than this, or somebody else's folder is in the way.
            if any(path.name != JOURNAL for path in folder.iterdir()):
                raise UsageError(f"{folder} is in the way and no result of an earlier run; move it away.")
            journal.truncate(0)
            partial.begin(plan)
        elif lines[0].get("plan") != plan:
            raise UsageError(
                f"{folder} holds the beginning of another result (other sources, or other options); "
                "go on with those, or remove it."
            )
        yield partial


def already_finished(target: Path, plan: str) -> bool:
    """Tell whether `target` is the result of that plan, whose run was killed when only the journal was left."""
    journal = target / JOURNAL
    if not journal.is_file():
        return False
    lines = _lines(journal.read_bytes())
    if not lines or lines[0].get("plan") != plan:
        return False
    journal.unlink()
    return True


@contextmanager
def removed_where_it_fails(target: Path, kind: type[MoekitError] = MoekitError) -> Iterator[None]:
    """Remove what has been written for `target` where the block raises that error: no later run could go on with it."""
    try:
        yield
    except kind as error:
        shutil.rmtree(partial_folder(target), ignore_errors=True)
        raise MoekitError(f"{error} What was written was removed.") from error


def file_crc(path: Path) -> int:
    """Compute the CRC-32 of a file."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _lines(text: bytes) -> list[dict[str, Any]]:
    """Give the journal's whole lines; a last one that was cut short says nothing."""
    found = []
    for line in text.split(b"\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
