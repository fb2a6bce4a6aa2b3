"""Writing a checkpoint as the safetensors library would, a piece at a time: memory does not grow with the model."""

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.headers import header_of, index_of, shards_of, size_of
from moekit.checkpoint.layout import Stored
from moekit.checkpoint.read_weights import memory_of, promoted
from moekit.checkpoint.stored_tensors import INDEX, OLD_INDEX, OLD_SINGLE, SINGLE
from moekit.checkpoint.views import Pair, check_cover, pairs, pieces, stored_shape
from moekit.core import files
from moekit.core.errors import UsageError

_PIECE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A tensor to write, before any of it is read."""

    entry: Stored
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The tensor's name in the file."""
        return self.entry.name


def write_weights(
    folder: Path,
    layout: Sequence[Stored],
    parameters: Mapping[str, Tensor],
    *,
    shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write `parameters` to `folder` as `layout` says.

    This makes one `model.safetensors`, or where that would hold more than `shard_bytes` of data, shards of at most that
    many (a single larger tensor excepted) in the layout's order and `model.safetensors.index.json`. A tensor has the
    type of our parameters (of several types, the one that `dtype_of` names). Optional tensors are not written. Each
    file appears under its name only when it is whole and on disk.

    Args:
        folder: where the files go.
        layout: how stored tensors and parameters are made of each other.
        parameters: CPU tensors by our names.
        shard_bytes: the most bytes of data in a file.
        metadata: texts for the header of each file; by default {"format": "pt"}, without which transformers refuses it.

    Returns:
        The names of the files, the index last.

    Raises:
        UsageError: where the folder holds weights already.
        MoekitError: where the disk is full or a parameter is of a type that safetensors can't hold.
        LayoutError: as `read_weights` does.
    """
    held = [name for name in (SINGLE, INDEX, OLD_SINGLE, OLD_INDEX) if os.path.lexists(folder / name)]
    if held:
        raise UsageError(f"{folder} holds weights already ({held[0]}); name another folder.")
    check_cover(layout, parameters)
    shards = shards_of([_planned(entry, parameters) for entry in layout if not entry.optional], shard_bytes)
    for name, shard in shards.items():
        with files.replacing(folder / name) as temporary:
            _write_file(temporary, shard, parameters, {"format": "pt"} if metadata is None else metadata)
    if len(shards) == 1:
        return list(shards)
    files.write_text(folder / INDEX, index_of(shards))
    return [*shards, INDEX]


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `target` of what `fill` writes into the empty folder it is given: all of it or nothing.

    That folder stands beside `target` and takes its name when its files are on disk. It is removed where `fill` fails.

    Raises:
        UsageError: before `fill` is called, where `target` is not a new or empty folder that can be replaced.
        MoekitError: where the disk is full.
    """
    target = Path(os.path.realpath(target))
    check_replaceable(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with files.full_disk_in_words(target):
            temporary.mkdir(parents=True)
            fill(temporary)
            _sync_tree(temporary)
            check_replaceable(target)
            os.rename(temporary, target)
            files.sync(target.parent)
    finally:
        # Gone after the renaming. An error in here would hide the one that brought us here.
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(target: Path) -> None:
    """Raise UsageError unless `target` is free: absent, or an empty folder that can be replaced."""
    if not os.path.lexists(target):
        return
    if not target.is_dir() or any(target.iterdir()):
        raise UsageError(f"{target} exists already and is not an empty folder; name another.")
    if target.is_mount() or target.samefile(Path.cwd()):
        raise UsageError(f"{target} is in use (mounted, or the current folder); name a new folder inside it.")


def _planned(entry: Stored, parameters: Mapping[str, Tensor]) -> _Planned:
    dtype = reduce(promoted, (parameters[part.ours].dtype for part in entry.parts))
    return _Planned(entry=entry, dtype=dtype, shape=stored_shape(entry, parameters))


def _write_file(
    path: Path, tensors: Sequence[_Planned], parameters: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    header = header_of(tensors, metadata)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        _write(descriptor, memoryview(header), 0)
        position = len(header)
        for tensor in tensors:
            _write_tensor(descriptor, position, tensor, parameters)
            position += size_of(tensor)
    finally:
        os.close(descriptor)


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
    """Put the tensor together in memory as one piece, where its parts lie between each other in the file."""
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
            files.sync(Path(parent, name))
        files.sync(Path(parent))
