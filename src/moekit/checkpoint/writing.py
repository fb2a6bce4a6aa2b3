"""Writing a checkpoint as the safetensors library would, a piece at a time: memory does not grow with the model."""

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from moekit import files
from moekit.checkpoint.layout import Stored
from moekit.checkpoint.loading import memory_of, promoted
from moekit.checkpoint.parts import Pair, check_cover, pairs, pieces, stored_shape
from moekit.checkpoint.tensors import DTYPES, INDEX, OLD_INDEX, OLD_SINGLE, SINGLE
from moekit.errors import MoekitError, UsageError

_PIECE_BYTES = 16 << 20
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_ORDER = {dtype: position for position, dtype in enumerate(DTYPES.values())}


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A tensor to write, before any of it is read."""

    entry: Stored
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path,
    layout: Sequence[Stored],
    parameters: Mapping[str, Tensor],
    *,
    shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write `parameters` (CPU tensors) to `folder` as `layout` says; gives the names of the files, the index last.

    One `model.safetensors`, or where that would hold more than `shard_bytes` of data, shards of at most that many
    (a single larger tensor excepted) in the layout's order and `model.safetensors.index.json`. A tensor has the type of
    our parameters (of several types, the one that `dtype_of` names). Optional tensors are not written. Each file
    appears under its name only when it is whole and on disk.

    metadata: texts for the header of each file; by default {"format": "pt"}, without which transformers refuses it.

    Raises UsageError where the folder holds weights already, MoekitError where the disk is full or a parameter is of a
    type that safetensors can't hold, LayoutError as `read_weights` does.
    """
    held = [name for name in (SINGLE, INDEX, OLD_SINGLE, OLD_INDEX) if os.path.lexists(folder / name)]
    if held:
        raise UsageError(f"{folder} holds weights already ({held[0]}); name another folder.")
    check_cover(layout, parameters)
    shards = _shards([_planned(entry, parameters) for entry in layout if not entry.optional], shard_bytes)
    names = [SINGLE] if len(shards) == 1 else _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        with files.replacing(folder / name) as temporary:
            _write_file(temporary, shard, parameters, {"format": "pt"} if metadata is None else metadata)
    if len(shards) == 1:
        return names
    files.write_text(folder / INDEX, _index_text(names, shards))
    return [*names, INDEX]


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `target` of what `fill` writes into the empty folder it is given: all of it or nothing.

    That folder stands beside `target` and takes its name when its files are on disk. It is removed where `fill` fails.

    Raises UsageError, before `fill` is called, where `target` is not a new or empty folder that can be replaced,
    MoekitError where the disk is full.
    """
    target = Path(os.path.realpath(target))
    _check_replaceable(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with files.full_disk_in_words(target):
            temporary.mkdir(parents=True)
            fill(temporary)
            _sync_tree(temporary)
            _check_replaceable(target)
            os.rename(temporary, target)
            _sync(target.parent)
    finally:
        # Gone after the renaming. An error in here would hide the one that brought us here.
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir() or any(target.iterdir()):
        raise UsageError(f"{target} exists already and is not an empty folder; name another.")
    if target.is_mount() or target.samefile(Path.cwd()):
        raise UsageError(f"{target} is in use (mounted, or the current folder); name a new folder inside it.")


def _planned(entry: Stored, parameters: Mapping[str, Tensor]) -> _Planned:
    dtype = reduce(promoted, (parameters[part.ours].dtype for part in entry.parts))
    if dtype not in _CODES:
        raise MoekitError(f"Tensor {entry.name!r} is of type {dtype}, which moekit doesn't write.")
    return _Planned(entry=entry, dtype=dtype, shape=stored_shape(entry, parameters))


def _shards(tensors: Sequence[_Planned], shard_bytes: int) -> list[list[_Planned]]:
    """Tensors that stand next to each other in the layout, as many a shard as fit; at least one shard."""
    shards: list[list[_Planned]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if tensor.size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.size
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _index_text(names: Sequence[str], shards: Sequence[Sequence[_Planned]]) -> str:
    total = sum(tensor.size for shard in shards for tensor in shard)
    weight_map = {tensor.entry.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


def _write_file(
    path: Path, tensors: Sequence[_Planned], parameters: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    ordered = sorted(tensors, key=lambda tensor: (_ORDER[tensor.dtype], tensor.entry.name))
    header = _header(ordered, metadata)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        _write(descriptor, memoryview(header), 0)
        position = len(header)
        for tensor in ordered:
            _write_tensor(descriptor, position, tensor, parameters)
            position += tensor.size
    finally:
        os.close(descriptor)


def _header(tensors: Sequence[_Planned], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON, padded so that the data begins on a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for tensor in tensors:
        offsets = [begin, begin + tensor.size]
        header[tensor.entry.name] = {"dtype": _CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
        begin += tensor.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(descriptor: int, position: int, tensor: _Planned, parameters: Mapping[str, Tensor]) -> None:
    """Write a tensor whose first byte is at `position`: straight from the parameters where its parts are long runs."""
    cut = [
        piece for pair in pairs(tensor.entry, parameters) for piece in pieces(pair, tensor.dtype.itemsize, _PIECE_BYTES)
    ]
    if not all(piece.stored.is_contiguous() for piece in cut):
        cut = _assembled(tensor, cut)
    for piece in cut:
        data = piece.ours.to(tensor.dtype).contiguous()
        begin = int(piece.stored.storage_offset()) * tensor.dtype.itemsize
        _write(descriptor, memory_of(data), position + begin)


def _assembled(tensor: _Planned, cut: Sequence[Pair]) -> list[Pair]:
    """The tensor as one piece that is put together in memory, for parts that lie between each other in the file."""
    data = torch.empty(tensor.shape, dtype=tensor.dtype)
    for piece in cut:
        stored = piece.stored
        data.as_strided(stored.shape, stored.stride(), stored.storage_offset()).copy_(piece.ours)
    return [Pair(data, torch.empty(tensor.shape, device="meta"))]


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
