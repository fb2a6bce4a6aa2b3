"""Writing a folder of weights whose tensors are pieces of others: copied in chunks, or computed when it is their turn.

Memory does not grow with the model. A run that was killed goes on with the same call, and the bytes are the same.
"""

import hashlib
import json
import math
import mmap
import os
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.checkpoint.headers import header_of, index_of, shards_of, size_of
from moekit.checkpoint.read_weights import memory_of
from moekit.checkpoint.stored_tensors import INDEX
from moekit.convert.storage.direct_file import DirectFile
from moekit.convert.storage.output_tensors import Copy, Made, OutputTensor, Piece
from moekit.convert.storage.partial_folder import (
    Partial,
    Reached,
    already_finished,
    opened,
    partial_folder,
    removed_where_it_fails,
)
from moekit.core import files
from moekit.core.errors import MoekitError
from moekit.core.formatting import bytes_text

# Read, summed and written at once: large enough that a disk is busy with one while the next is read.
_CHUNK_BYTES = 4 << 20
# Chunks are read while those before are summed and written, which may lag behind on a busy machine.
_BUFFERS = 4
# What may have to be written again after a kill.
_SYNC_BYTES = 256 << 20
# The buffers, and what threads, torch's included, take when they first work.
_BASE_BYTES = (_BUFFERS + 1) * _CHUNK_BYTES + (12 << 20)


class NotFinite(MoekitError):
    """A tensor would hold what is no number."""


def output_bytes(tensors: Sequence[OutputTensor], *, shard_bytes: int = 5_000_000_000) -> int:
    """Count the bytes of all files that `write_tensors` writes, but for checksums.json and what `fill` adds."""
    return sum(file_bytes(tensors, shard_bytes=shard_bytes).values())


def file_bytes(tensors: Sequence[OutputTensor], *, shard_bytes: int = 5_000_000_000) -> dict[str, int]:
    """Give those files by name, with their bytes."""
    shards = shards_of(tensors, shard_bytes)
    sizes = {
        name: len(header_of(shard, _METADATA)) + sum(size_of(tensor) for tensor in shard)
        for name, shard in shards.items()
    }
    return sizes if len(shards) == 1 else sizes | {INDEX: len(index_of(shards).encode())}


def peak_memory_bytes(tensors: Sequence[OutputTensor]) -> int:
    """Count what `write_tensors` holds in memory at most, beside the interpreter and its libraries, in bytes."""
    return _BASE_BYTES + max((_memory(tensor, piece) for tensor in tensors for piece in tensor.pieces), default=0)


def _memory(tensor: OutputTensor, piece: Piece) -> int:
    if isinstance(piece, Made):
        return piece.memory_bytes + math.prod(piece.shape) * tensor.dtype.itemsize
    return 0


_METADATA = {"format": "pt"}  # without which transformers refuses a file


def write_tensors(
    folder: Path,
    tensors: Sequence[OutputTensor],
    *,
    shard_bytes: int = 5_000_000_000,
    on_bytes: Callable[[int], None] | None = None,
    settings: str = "",
    fill: Callable[[Path], None] | None = None,
) -> list[str]:
    """Write `tensors` as the weights of the new folder `folder`; gives the names of the files, the index last.

    They grow in `<folder>.partial`, which takes the name `folder` when everything is on disk. Where it fails or is
    killed, the same call goes on with what is there. `checksums.json` holds bytes and CRC-32 of every file.

    on_bytes: called with the bytes written since the last call; those that an earlier run wrote come first.
    settings: what else decides the bytes; another text is another result. fill: called with the folder when the weights
    are complete, adds what belongs beside them (it may find its own files there), and may raise to prevent the result.

    Raises UsageError where `folder` holds something or the partial folder holds another plan, MoekitError where a
    source has changed, where the disk is too small or full, or where another run writes there; NotFinite where numbers
    that are computed or converted are none, and nothing is left then.
    """
    shards = shards_of(tensors, shard_bytes)
    names = [*shards, INDEX] if len(shards) > 1 else list(shards)
    plan = fingerprint(tensors, shard_bytes, settings)
    if already_finished(folder, plan):
        return names
    with (
        removed_where_it_fails(folder, NotFinite),
        opened(folder, plan) as partial,
        files.full_disk_in_words(folder),
    ):
        _check_room(folder, partial, shards, output_bytes(tensors, shard_bytes=shard_bytes))
        # A thread each, so that chunks are summed in order, and written in order.
        with ThreadPoolExecutor(1, "sums") as sums, ThreadPoolExecutor(1, "writes") as writes:
            tools = _Tools(sums, writes, _Buffers(), on_bytes or (lambda size: None))
            for name, shard in shards.items():
                _Shard(partial, name, shard, tools).write()
        if len(shards) > 1:
            (partial.folder / INDEX).write_text(index_of(shards), encoding="utf-8")
        if fill is not None:
            fill(partial.folder)
        partial.finish(folder)
    return names


def fingerprint(tensors: Sequence[OutputTensor], shard_bytes: int, settings: str = "") -> str:
    """Digest everything that decides the bytes: names, types, shapes, and what the pieces are made of."""
    digest = hashlib.sha256(json.dumps([shard_bytes, settings]).encode())
    changed: dict[Path, tuple[str, int, int]] = {}
    for tensor in tensors:
        described = [_described(piece, changed) for piece in tensor.pieces]
        digest.update(json.dumps([tensor.name, str(tensor.dtype), tensor.shape, described]).encode())
    return digest.hexdigest()


def _described(piece: Piece, changed: dict[Path, tuple[str, int, int]]) -> list[object]:
    if isinstance(piece, Made):
        return [piece.shape, piece.key]
    info = piece.tensors[piece.name]
    if info.file not in changed:
        status = info.file.stat()
        changed[info.file] = (os.path.realpath(info.file), status.st_size, status.st_mtime_ns)
    return [*changed[info.file], info.start, info.size, piece.begin_row, piece.end_row]


def _check_room(folder: Path, partial: Partial, shards: dict[str, list[OutputTensor]], needed: int) -> None:
    """Raise MoekitError where the disk cannot take what is still to be written."""
    held = sum((partial.folder / name).stat().st_size for name in shards if (partial.folder / name).is_file())
    free = files.free_bytes(partial.folder)
    if needed - held > free:
        raise MoekitError(
            f"{folder} needs {bytes_text(needed - held)} more and the disk has {bytes_text(free)} free; "
            f"free some space and go on, or remove {partial_folder(folder).name}."
        )


def _check_finite(tensor: OutputTensor, given: Tensor, written: Tensor) -> None:
    """Raise NotFinite where numbers that are computed or converted are none any more; copies keep their bits."""
    if not _finite(written):
        why = f"some are too large for {str(tensor.dtype).removeprefix('torch.')}; take another dtype"
        if not _finite(given):
            why = "some of what it is made of are none; a source is damaged"
        raise NotFinite(f"{tensor.name!r} would hold numbers that are not finite: {why}.")


def _finite(numbers: Tensor) -> bool:
    """Tell whether all are; without a second copy of them. Of 8-bit floats torch cannot say."""
    if not numbers.numel() or not numbers.is_floating_point() or numbers.itemsize == 1:
        return True
    return all(math.isfinite(bound.item()) for bound in torch.aminmax(numbers))


class _Buffers:
    """Memory for chunks, in turn, at addresses that a disk can read from by itself."""

    def __init__(self) -> None:
        # Zeros that are never written take no memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = [memoryview(mmap.mmap(-1, _CHUNK_BYTES, flags=private)) for _ in range(_BUFFERS)]
        self._raw = memoryview(mmap.mmap(-1, _CHUNK_BYTES, flags=private))

    def next(self) -> memoryview:
        """Give the buffer whose turn it is: what was handed out `_BUFFERS` calls ago."""
        self._memory.append(self._memory.pop(0))
        return self._memory[-1]

    def raw(self, size: int) -> memoryview:
        """Give the first `size` bytes of memory for what is not written as it is."""
        return self._raw[:size]


@dataclass(frozen=True)
class _Tools:
    """What all files of a run share."""

    sums: ThreadPoolExecutor
    writes: ThreadPoolExecutor
    buffers: _Buffers
    on_bytes: Callable[[int], None]


class _Shard:
    """One file, written from where an earlier run came to."""

    def __init__(self, partial: Partial, name: str, tensors: Sequence[OutputTensor], tools: _Tools) -> None:
        self._partial, self._name, self._tensors, self._tools = partial, name, tensors, tools
        self._running: deque[list[Future[Any]]] = deque()  # the sum, the write and perhaps the note of each chunk
        self._intact = True
        reached = partial.reached(name)
        self._position, self._crc = reached.position, reached.crc
        self._synced = self._position
        self._chunk, self._filled = memoryview(b""), 0
        self._file = DirectFile(partial.folder / name, self._position)

    def write(self) -> None:
        """Write what is missing; the file is on disk when it returns."""
        header = header_of(self._tensors, _METADATA)
        total = len(header) + sum(size_of(tensor) for tensor in self._tensors)
        try:
            self._tools.on_bytes(self._position)
            if self._position == total:
                return
            self._fill(header)
            self._synced = self._position - _SYNC_BYTES  # so that the end is noted, too
            self._append()
            self._settle()
        finally:
            # What still runs in other threads uses the file.
            for futures in self._running:
                for future in futures:
                    future.exception()
            self._file.close()

    def _fill(self, header: bytes) -> None:
        """Write the bytes of the file from the position reached."""
        skip = self._position
        self._put(memoryview(header)[skip:])
        begin = len(header)
        for tensor in self._tensors:
            for piece in tensor.pieces:
                size = math.prod(piece.shape) * tensor.dtype.itemsize
                if begin + size > skip:
                    self._piece(tensor, piece, max(0, skip - begin))
                begin += size

    def _piece(self, tensor: OutputTensor, piece: Piece, skip: int) -> None:
        if isinstance(piece, Copy):
            self._copy(piece, tensor, skip)
            return
        made = piece.make()
        if made.shape != piece.shape:
            raise AssertionError(f"a piece of {tensor.name!r} is {tuple(made.shape)} and not {piece.shape}")
        written = made.to(tensor.dtype).contiguous()
        _check_finite(tensor, made, written)
        self._put(memory_of(written)[skip:])

    def _put(self, data: memoryview) -> None:
        while data:
            room = self._room(len(data))
            room[:] = data[: len(room)]
            data = data[len(room) :]

    def _copy(self, piece: Copy, tensor: OutputTensor, skip: int) -> None:
        """Copy a stored tensor from byte `skip` of the result on."""
        info, dtype = piece.tensors[piece.name], tensor.dtype
        first = piece.begin_row * math.prod(info.shape[1:]) + skip // dtype.itemsize
        left = math.prod(piece.shape) - skip // dtype.itemsize
        while left:
            # A chunk ends between two elements: it is of a power of two bytes, and so is what precedes a tensor.
            most = left if info.dtype is dtype else min(left, _CHUNK_BYTES // info.dtype.itemsize)
            room = self._room(most * dtype.itemsize)
            count = len(room) // dtype.itemsize
            if info.dtype is dtype:
                piece.tensors.read(piece.name, first * dtype.itemsize, room)
            else:
                raw = self._tools.buffers.raw(count * info.dtype.itemsize)
                piece.tensors.read(piece.name, first * info.dtype.itemsize, raw)
                read, written = torch.frombuffer(raw, dtype=info.dtype), torch.frombuffer(room, dtype=dtype)
                written.copy_(read)
                _check_finite(tensor, read, written)
            first, left = first + count, left - count

    def _room(self, most: int) -> memoryview:
        """Give at most so many bytes of the file to be filled by the caller, who asks again for what is left."""
        if self._filled == len(self._chunk):
            self._append()
            # The buffer that is filled next is the one that was written first.
            self._settle(but=_BUFFERS - 1)
            self._chunk, self._filled = self._tools.buffers.next(), 0
        room = self._chunk[self._filled : self._filled + most]
        self._filled += len(room)
        return room

    def _append(self) -> None:
        """Sum and write the chunk as far as it is filled."""
        chunk, position = self._chunk[: self._filled], self._position
        if not chunk:
            return
        self._position += len(chunk)
        total = self._tools.sums.submit(self._add, chunk)
        futures: list[Future[Any]] = [total, self._tools.writes.submit(self._write, chunk, position)]
        if self._position - self._synced >= _SYNC_BYTES:
            self._synced = self._position
            futures.append(self._tools.writes.submit(self._note, self._position, total))
        self._running.append(futures)
        self._tools.on_bytes(len(chunk))

    def _add(self, chunk: memoryview) -> int:
        self._crc = zlib.crc32(chunk, self._crc)
        return self._crc

    def _write(self, chunk: memoryview, position: int) -> None:
        if self._intact:
            self._intact = False  # what follows a write that failed is neither written nor noted
            self._file.write(chunk, position)
            self._intact = True

    def _note(self, position: int, total: Future[int]) -> None:
        """Note that the file is on disk up to there."""
        if self._intact:
            self._intact = False
            self._file.sync()
            self._partial.record(self._name, Reached(position, total.result()))
            self._intact = True

    def _settle(self, but: int = 0) -> None:
        """Wait until all chunks are summed and written, `but` the last so many; raises what went wrong."""
        while len(self._running) > but:
            for future in self._running.popleft():
                future.result()
