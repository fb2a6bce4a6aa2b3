"""Sorting and adding up more keys than fit in memory: sorted runs in files without a name, merged as a stream.

A key is a row of C unsigned 64-bit numbers, the first the most significant, and lies in C columns.
A `Run` is sorted, and each key is in it once, with its count.
"""

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from moekit.core import files

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

_MOST_FILES = 64
_FEWEST_ROWS = 64
# np.sort of more is slower for each key: caches
_MOST_KEYS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Run:
    """Keys in C columns, ascending, each with its count."""

    columns: list[Keys]
    counts: Counts

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def bytes(self) -> int:
        """The memory that it holds."""
        return len(self) * 8 * (len(self.columns) + 1)

    def part(self, start: int, stop: int) -> "Run":
        """Give rows `start` to `stop`."""
        return Run([column[start:stop] for column in self.columns], self.counts[start:stop])


def sorted_run(columns: list[Keys], counts: Counts | None = None) -> Run:
    """Sort the distinct keys of `columns` with the sums of their counts, each key counting 1 where there are none."""
    if not len(columns[0]):
        return Run(columns, np.zeros(0, dtype=np.int64))
    if len(columns) == 1 and counts is None:
        ordered = np.sort(columns[0])
        starts = _starts(ordered)
        return Run([ordered[starts]], np.diff(starts, append=len(ordered)))
    key = columns[0]
    if len(columns) > 1:
        key, distinct = _ranks(key)
        for column in columns[1:]:
            rank, more = _ranks(column)
            bits = max(more - 1, 1).bit_length()
            if (distinct - 1).bit_length() + bits > 64:  # pragma: no cover (2^32 keys at once)
                raise OverflowError("too many keys at once")
            key, distinct = _ranks(key << np.uint64(bits) | rank)
    order = np.argsort(key)
    starts = _starts(key[order])
    firsts = order[starts]
    sums = np.diff(starts, append=len(order)) if counts is None else np.add.reduceat(counts[order], starts)
    return Run([column[firsts] for column in columns], sums)


def merged(runs: Sequence[Run]) -> Run:
    """Merge several runs that are in memory into one."""
    if len(runs) == 1:
        return runs[0]
    columns = [np.concatenate(parts) for parts in zip(*(run.columns for run in runs), strict=True)]
    return sorted_run(columns, np.concatenate([run.counts for run in runs]))


class ExternalSorter:
    """Takes keys in any order, at most `chunk_keys` at a time, and gives them back sorted and added up.

    memory_bytes bounds what is held at any time, keys handed in included. Runs that do not fit are spilled into
    `folder`, into files that have no name and so vanish with the process, however it ends. Use it as a context.
    """

    def __init__(self, columns: int, memory_bytes: int, folder: Path, workers: int | None = None) -> None:
        self._columns = columns
        self._memory = memory_bytes
        self._folder = folder
        self._workers = workers or min(2, os.cpu_count() or 1)
        # keys handed in, ranks, orders and sorted copies of each column while it is sorted
        self.chunk_keys = max(
            _FEWEST_ROWS, min(_MOST_KEYS_AT_ONCE, memory_bytes // 3 // ((self._workers + 1) * (16 * columns + 48)))
        )
        self._held: list[Run] = []
        self._spilled: list[IO[bytes]] = []
        self._pool = ThreadPoolExecutor(self._workers)
        self._sorting: deque[Future[Run]] = deque()
        self.spills = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for file in self._spilled:
            file.close()

    def add(self, columns: list[Keys]) -> None:
        """Hand in keys, which are the sorter's from now on."""
        self._sorting.append(self._pool.submit(sorted_run, columns))
        if len(self._sorting) > self._workers:
            self._hold(self._sorting.popleft().result())

    def blocks(self) -> Iterator[Run]:
        """Yield all keys, in ascending runs that follow each other; call it once, after the last `add`."""
        while self._sorting:
            self._hold(self._sorting.popleft().result())
        if not self._spilled:
            if self._held:
                yield from _blocks(merged(self._held), self._rows(1))
            return
        self._spill()
        most = max(2, min(_MOST_FILES, self._memory // 2 // (_FEWEST_ROWS * self._row_bytes())))
        while len(self._spilled) > most:
            first, self._spilled = self._spilled[:most], self._spilled[most:]
            try:
                self._write(self._merge(first))
            finally:
                for file in first:
                    file.close()
        yield from self._merge(self._spilled)

    def _row_bytes(self) -> int:
        # a row as read, as part of the block being merged, and what sorting it takes
        return 24 * self._columns + 72

    def _rows(self, files_open: int) -> int:
        return max(_FEWEST_ROWS, self._memory // 2 // (files_open * self._row_bytes()))

    def _hold(self, run: Run) -> None:
        self._held.append(run)
        limit = self._memory // 12
        if sum(held.bytes for held in self._held) > limit:
            self._held = [merged(self._held)]
            # few distinct keys, as in long texts of bytes, may stay
            if self._held[0].bytes > limit // 2:
                self._spill()

    def _spill(self) -> None:
        if self._held:
            run = merged(self._held)
            self._held = []
            self._write(_blocks(run, self._rows(2)))
            self.spills += 1

    def _write(self, blocks: Iterator[Run]) -> None:
        with files.full_disk_in_words(self._folder / "temporary files"):
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed when the sorter is left)
            self._spilled.append(file)
            for block in blocks:
                np.stack([*block.columns, block.counts.view(np.uint64)], axis=1).tofile(file)
            file.flush()

    def _merge(self, spilled: list[IO[bytes]]) -> Iterator[Run]:
        readers = [_Reader(file, self._columns, self._rows(len(spilled))) for file in spilled]
        while readers := [reader for reader in readers if reader.fill()]:
            # up to the least of the last keys in memory, nothing that is still on disk can come between
            last = min(reader.last() for reader in readers)
            yield merged([reader.take(last) for reader in readers])


class _Reader:
    """Reads a spilled run, `rows` of it in memory at a time."""

    def __init__(self, file: IO[bytes], columns: int, rows: int) -> None:
        self._file = file
        self._width = columns + 1
        self._rows = rows
        self._run: Run | None = None
        file.seek(0)

    def fill(self) -> bool:
        """Read on until a block is in memory again; False at the end.

        Only where all readers are full does a step of the merge use up most of what they hold.
        """
        missing = self._rows - (len(self._run) if self._run else 0)
        if missing:
            table = np.fromfile(self._file, dtype=np.uint64, count=missing * self._width).reshape(-1, self._width)
            read = Run([table[:, index] for index in range(self._width - 1)], table[:, -1].astype(np.int64))
            parts = [self._run, read] if self._run else [read]
            columns = [np.concatenate(column) for column in zip(*(part.columns for part in parts), strict=True)]
            self._run = Run(columns, np.concatenate([part.counts for part in parts]))
        return bool(self._run)

    def last(self) -> tuple[int, ...]:
        """Give the greatest key in memory."""
        assert self._run is not None
        return tuple(int(column[-1]) for column in self._run.columns)

    def take(self, key: tuple[int, ...]) -> Run:
        """Take out all up to `key`."""
        assert self._run is not None
        run = self._run
        start, stop = 0, len(run)
        for column, value in zip(run.columns, key, strict=True):
            window = column[start:stop]
            wanted = np.uint64(value)
            start, stop = (
                start + int(np.searchsorted(window, wanted, "left")),
                start + int(np.searchsorted(window, wanted, "right")),
            )
        self._run = run.part(stop, len(run))
        return run.part(0, stop)


def _blocks(run: Run, rows: int) -> Iterator[Run]:
    for start in range(0, len(run), rows):
        yield run.part(start, start + rows)


def _starts(ordered: Keys) -> npt.NDArray[np.int64]:
    """Find where each value of a sorted array begins."""
    new = np.empty(len(ordered), dtype=np.bool_)
    new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)


def _ranks(column: Keys) -> tuple[Keys, int]:
    """Compute the dense rank of each value, and how many distinct values there are."""
    order = np.argsort(column)
    ordered = column[order]
    new = np.empty(len(ordered), dtype=np.uint64)
    new[0] = 0
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:], casting="unsafe")
    np.cumsum(new, out=new)
    ranks = np.empty_like(new)
    ranks[order] = new
    return ranks, int(new[-1]) + 1
