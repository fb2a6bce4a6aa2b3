"""Writing a folder of weights whose tensors are pieces of others: copied in chunks, or computed when it is their turn.

Memory does not grow with the model. A run that was killed goes on with the same call, and the bytes are the same.
"""

import hashlib
import json
import math
import mmap
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moekit import files
from moekit.checkpoint import StoredTensors
from moekit.checkpoint.headers import header_of, index_of, shards_of, size_of
from moekit.checkpoint.loading import memory_of
from moekit.checkpoint.tensors import INDEX
from moekit.convert.partial import Partial, Reached, already_finished, opened, partial_folder
from moekit.errors import MoekitError
from moekit.formatting import bytes_text

# Read and written at once: large enough that calls cost nothing, small enough to stay in the processor's cache.
_CHUNK_BYTES = 4 << 20
# Chunks are read and written while the sums of those before are computed, which may lag behind on a busy machine.
_BUFFERS = 4
# What may have to be written again after a kill; written back to disk while the next chunks are copied.
_SYNC_BYTES = 256 << 20
# The buffers, and what threads, torch's included, take when they first work.
_BASE_BYTES = (_BUFFERS + 1) * _CHUNK_BYTES + (12 << 20)


@dataclass(frozen=True)
class Copy:
    """Rows `begin_row` to `end_row` (None: the end) along the first dimension of a stored tensor, bytes as they are."""

    tensors: StoredTensors
    name: str
    begin_row: int = 0
    end_row: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is copied."""
        shape = self.tensors[self.name].shape
        if not shape:
            return shape
        end = shape[0] if self.end_row is None else self.end_row
        return (end - self.begin_row, *shape[1:])


@dataclass(frozen=True)
class Made:
    """A tensor that is computed when it is its turn, then forgotten.

    make: gives a CPU tensor of `shape`, the same bits at every call. memory_bytes: what it needs at its peak, the
    result included. key: tells it from others in the same place (seed, method), so that a run with other settings does
    not go on with its bytes.
    """

    make: Callable[[], Tensor]
    shape: tuple[int, ...]
    memory_bytes: int
    key: str = ""


Piece = Copy | Made


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: its pieces follow each other in row-major order and are together all of its elements.

    A piece of another type is converted to `dtype`, as `Tensor.to` does.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        """AssertionError where the pieces are not the whole of the tensor: a mistake in moekit."""
        held = sum(math.prod(piece.shape) for piece in self.pieces)
        if held != math.prod(self.shape):
            raise AssertionError(f"the pieces of {self.name!r} hold {held} of its {math.prod(self.shape)} elements")


def output_bytes(tensors: Sequence[OutputTensor], *, shard_bytes: int = 5_000_000_000) -> int:
    """The bytes of all files that `write_tensors` writes, but for checksums.json and what `fill` adds."""
    return sum(file_bytes(tensors, shard_bytes=shard_bytes).values())


def file_bytes(tensors: Sequence[OutputTensor], *, shard_bytes: int = 5_000_000_000) -> dict[str, int]:
    """Those files by name, with their bytes."""
    shards = shards_of(tensors, shard_bytes)
    sizes = {
        name: len(header_of(shard, _METADATA)) + sum(size_of(tensor) for tensor in shard)
        for name, shard in shards.items()
    }
    return sizes if len(shards) == 1 else sizes | {INDEX: len(index_of(shards).encode())}


def peak_memory_bytes(tensors: Sequence[OutputTensor]) -> int:
    """What `write_tensors` holds in memory at most, besides the interpreter and its libraries, in bytes."""
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
    source has changed, where the disk is too small or full, or where another run writes there.
    """
    shards = shards_of(tensors, shard_bytes)
    names = [*shards, INDEX] if len(shards) > 1 else list(shards)
    plan = fingerprint(tensors, shard_bytes, settings)
    if already_finished(folder, plan):
        return names
    with opened(folder, plan) as partial, files.full_disk_in_words(folder):
        _check_room(folder, partial, shards, output_bytes(tensors, shard_bytes=shard_bytes))
        # A thread each, so that sums are computed in order and never wait for the disk.
        with ThreadPoolExecutor(1, "sums") as sums, ThreadPoolExecutor(1, "syncs") as syncs:
            tools = _Tools(sums, syncs, _Buffers(), on_bytes or (lambda size: None))
            for name, shard in shards.items():
                _Shard(partial, name, shard, tools).write()
        if len(shards) > 1:
            (partial.folder / INDEX).write_text(index_of(shards), encoding="utf-8")
        if fill is not None:
            fill(partial.folder)
        partial.finish(folder)
    return names


def fingerprint(tensors: Sequence[OutputTensor], shard_bytes: int, settings: str = "") -> str:
    """A digest of everything that decides the bytes: names, types, shapes, and what the pieces are made of."""
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
    free = shutil.disk_usage(partial.folder).free
    if needed - held > free:
        raise MoekitError(
            f"{folder} needs {bytes_text(needed - held)} more and the disk has {bytes_text(free)} free; "
            f"free some space and go on, or remove {partial_folder(folder).name}."
        )


class _Buffers:
    """Memory for chunks, in turn: what was handed out is overwritten when `_BUFFERS` others were."""

    def __init__(self) -> None:
        # Zeros that are never written take no memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = [memoryview(mmap.mmap(-1, _CHUNK_BYTES, flags=private)) for _ in range(_BUFFERS)]
        self._raw = memoryview(mmap.mmap(-1, _CHUNK_BYTES, flags=private))

    def next(self, size: int) -> memoryview:
        """The first `size` bytes of the one whose turn it is."""
        self._memory.append(self._memory.pop(0))
        return self._memory[-1][:size]

    def raw(self, size: int) -> memoryview:
        """The first `size` bytes of memory for what is not written as it is."""
        return self._raw[:size]


@dataclass(frozen=True)
class _Tools:
    """What all files of a run share."""

    sums: ThreadPoolExecutor
    syncs: ThreadPoolExecutor
    buffers: _Buffers
    on_bytes: Callable[[int], None]


class _Shard:
    """One file, written from where an earlier run came to."""

    def __init__(self, partial: Partial, name: str, tensors: Sequence[OutputTensor], tools: _Tools) -> None:
        self._partial, self._name, self._tensors, self._tools = partial, name, tensors, tools
        self._summing: deque[Future[None]] = deque()
        self._syncing: Future[None] | None = None
        reached = partial.reached(name)
        self._position, self._crc = reached.position, reached.crc
        self._synced = self._position
        self._descriptor = -1

    def write(self) -> None:
        """Write what is missing; the file is on disk when it returns."""
        header = header_of(self._tensors, _METADATA)
        total = len(header) + sum(size_of(tensor) for tensor in self._tensors)
        self._tools.on_bytes(self._position)
        self._descriptor = os.open(self._partial.folder / self._name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(self._descriptor, self._position)
            if self._position == total:
                return
            for chunk in self._chunks(header):
                self._append(chunk)
            self._settle()
            if self._syncing is not None:
                self._syncing.result()
            self._sync(Reached(self._position, self._crc))
        finally:
            # What still runs in other threads uses the descriptor.
            for running in (*self._summing, *([self._syncing] if self._syncing else [])):
                running.exception()
            os.close(self._descriptor)

    def _chunks(self, header: bytes) -> Iterator[memoryview]:
        """The bytes of the file from the position reached, in chunks that live until `_BUFFERS` others follow."""
        skip = self._position
        if skip < len(header):
            yield memoryview(header)[skip:]
        begin = len(header)
        for tensor in self._tensors:
            for piece in tensor.pieces:
                size = math.prod(piece.shape) * tensor.dtype.itemsize
                if begin + size > skip:
                    yield from self._piece(tensor, piece, max(0, skip - begin))
                begin += size

    def _piece(self, tensor: OutputTensor, piece: Piece, skip: int) -> Iterator[memoryview]:
        if isinstance(piece, Copy):
            yield from _copied(piece, tensor.dtype, skip, self._tools.buffers)
            return
        made = piece.make()
        if made.shape != piece.shape:
            raise AssertionError(f"a piece of {tensor.name!r} is {tuple(made.shape)} and not {piece.shape}")
        data = memory_of(made.to(tensor.dtype).contiguous())[skip:]
        del made
        for begin in range(0, len(data), _CHUNK_BYTES):
            yield data[begin : begin + _CHUNK_BYTES]
        self._settle()  # the sum of its last chunk, which is freed now

    def _append(self, chunk: memoryview) -> None:
        # The buffer that is filled next is the one whose sum was asked for first.
        self._settle(but=_BUFFERS - 2)
        self._summing.append(self._tools.sums.submit(self._add, chunk))
        position = self._position
        self._position += len(chunk)
        written = chunk
        while written:
            done = os.pwrite(self._descriptor, written, position)
            written, position = written[done:], position + done
        self._tools.on_bytes(len(chunk))
        if self._position - self._synced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._settle()
            if self._syncing is not None:
                self._syncing.result()
            self._synced = self._position
            self._syncing = self._tools.syncs.submit(self._sync, Reached(self._position, self._crc))

    def _add(self, chunk: memoryview) -> None:
        self._crc = zlib.crc32(chunk, self._crc)

    def _settle(self, but: int = 0) -> None:
        """Wait until the sum holds all that was appended, `but` so many chunks."""
        while len(self._summing) > but:
            self._summing.popleft().result()

    def _sync(self, reached: Reached) -> None:
        os.fdatasync(self._descriptor)
        self._partial.record(self._name, reached)


def _copied(piece: Copy, dtype: torch.dtype, skip: int, buffers: _Buffers) -> Iterator[memoryview]:
    """The bytes of a stored tensor from byte `skip` of the result on."""
    info = piece.tensors[piece.name]
    row = math.prod(info.shape[1:])
    elements = range(piece.begin_row * row + skip // dtype.itemsize, piece.begin_row * row + math.prod(piece.shape))
    step = _CHUNK_BYTES // max(info.dtype.itemsize, dtype.itemsize)
    for first in elements[::step]:
        count = min(step, elements.stop - first)
        chunk = buffers.next(count * dtype.itemsize)
        if info.dtype is dtype:
            piece.tensors.read(piece.name, first * dtype.itemsize, chunk)
        else:
            raw = buffers.raw(count * info.dtype.itemsize)
            piece.tensors.read(piece.name, first * info.dtype.itemsize, raw)
            torch.frombuffer(chunk, dtype=dtype).copy_(torch.frombuffer(raw, dtype=info.dtype))
        yield chunk
