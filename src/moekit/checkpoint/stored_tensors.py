"""The tensors of a Hugging Face folder: where they lie in its files, checked before anything is read.

Data is read, never mapped: a file that is cut short later is an error and not a SIGBUS, and its pages don't count twice
as memory of this process.
"""

import json
import math
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moekit.core.errors import MoekitError, UsageError
from moekit.core.formatting import printable

# In the order in which the safetensors library lays tensors out: aligned on any width as long as the widest go first.
DTYPES: Mapping[str, torch.dtype] = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# The limit of the safetensors library for its header; an index lists the same names once more.
_MOST_JSON_BYTES = 100_000_000
# What stands in folders that hold weights in other forms, with what it is.
_OTHER_WEIGHTS = {
    "*.gguf": "GGUF file; name the file itself",
    "adapter_model.safetensors": "LoRA adapter; merge it into its model first",
    "consolidated*.safetensors": "model in Mistral's own form; get the folder in Hugging Face's form",
    "*.safetensors": "file that is not called model.safetensors and has no index; rename it or add the index",
    "*.pth": "pickled file, which could run code; get the folder in safetensors",
    "*.pt": "pickled file, which could run code; get the folder in safetensors",
    "*.ckpt": "pickled file, which could run code; get the folder in safetensors",
    "*.h5": "TensorFlow file; get the folder in safetensors",
    "*.msgpack": "Flax file; get the folder in safetensors",
}


class UnknownForm(MoekitError):
    """A file is whole, and its numbers are of a form that moekit does not read."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A stored tensor: `size` bytes from byte `start` of `file`, its elements in row-major order.

    Attributes:
        rows: where the numbers are computed from what lies there (a quantised tensor), gives rows `begin` to `end` of
            the tensor as a matrix of its last dimension, in `dtype`; `size` is then that of the computed numbers.
        kept: the type in which such numbers are worth keeping, where it is a narrower one.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int
    rows: Callable[[int, int], Tensor] | None = None
    kept: torch.dtype | None = None


@dataclass(frozen=True)
class _Identity:
    """What tells a file from another that took its place, or from itself after a change."""

    device: int
    inode: int
    size: int
    modified_ns: int


class StoredTensors(Mapping[str, TensorInfo]):
    """The tensors of a checkpoint by name, in the order of files and of the bytes in them.

    Attributes:
        passed_over: tensors in the files that the folder's index does not name there: no part of the model.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], passed_over: Sequence[str] = ()) -> None:
        self.passed_over = tuple(passed_over)
        ordered = sorted(infos.items(), key=lambda item: (item[1].file, item[1].start, item[0]))
        self._infos = dict(ordered)
        self._identities = {file: _identity(file) for file in {info.file for info in infos.values()}}

    @classmethod
    def open(cls, folder: Path) -> "StoredTensors":
        """Find and check the weights in `folder`: safetensors, else an old folder's `pytorch_model.bin`.

        Of the files only headers are read. An old file is unpickled by torch in its restricted mode, which runs no code
        of the file.

        Raises:
            UsageError: where the folder holds no weights.
            MoekitError: naming file and tensor where they are damaged, incomplete, of a type that is not supported, or
                where an index names files outside the folder.
        """
        for single, index, read in ((SINGLE, INDEX, _safetensors_infos), (OLD_SINGLE, OLD_INDEX, _pickled_infos)):
            # A link that leads nowhere (an unfinished download) is told as such below.
            if os.path.lexists(folder / single):
                return cls(read(folder / single))
            if os.path.lexists(folder / index):
                return cls(*_sharded_infos(folder / index, read))
        raise UsageError(
            f"{folder} holds no weights: there is no {SINGLE}, {INDEX} or {OLD_SINGLE} in it{_others(folder)}."
        )

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def read(self, name: str, begin: int, into: memoryview) -> None:
        """Fill `into` (writable, of bytes) with the bytes of the tensor `name` from its byte `begin` on.

        Threads may call it at the same time; the interpreter's lock is free while it reads.

        Raises:
            MoekitError: where the file can't be read, has changed since `open`, or ends early.
        """
        info = self._infos[name]
        if begin < 0 or begin + len(into) > info.size:
            raise ValueError(f"bytes {begin} to {begin + len(into)} of the {info.size} of {name!r}")
        if info.rows is not None:
            _compute(info, info.rows, begin, into)
            return
        descriptor = _open(info.file)
        try:
            if _identity_of(os.fstat(descriptor)) != self._identities[info.file]:
                raise MoekitError(f"{info.file} has changed since it was opened; start again.")
            _fill(descriptor, info.start + begin, into)
        except (OSError, EOFError) as error:
            raise MoekitError(f"Tensor {name!r} could not be read from {info.file}: {_plain(error)}.") from error
        finally:
            os.close(descriptor)


def _fill(descriptor: int, position: int, into: memoryview) -> None:
    while into:
        got = os.preadv(descriptor, [into], position)
        if not got:
            raise EOFError("the file ends early")
        into, position = into[got:], position + got


def _compute(info: TensorInfo, rows: Callable[[int, int], Tensor], begin: int, into: memoryview) -> None:
    """Fill `into` with bytes of numbers that are computed, by whole rows."""
    row_bytes = info.shape[-1] * info.dtype.itemsize
    end = begin + len(into)
    found = rows(begin // row_bytes, -(-end // row_bytes)).contiguous().view(-1).view(torch.uint8)
    offset = begin // row_bytes * row_bytes
    torch.frombuffer(into, dtype=torch.uint8).copy_(found[begin - offset : end - offset])


def _others(folder: Path) -> str:
    """Say what a folder without weights of the usual names holds instead."""
    for pattern, what in _OTHER_WEIGHTS.items():
        if found := sorted(folder.glob(pattern)):
            return f"; {printable(found[0].name)} is a {what}"
    return "; get the whole folder"


def _sharded_infos(
    index: Path, read: Callable[[Path], dict[str, TensorInfo]]
) -> tuple[dict[str, TensorInfo], list[str]]:
    """Find the tensors that the index names, where it names them, and the others in the same files."""
    files = _index(index)
    infos: dict[str, TensorInfo] = {}
    passed_over: list[str] = []
    shards = sorted(set(files.values()))
    if absent := [file for file in shards if not os.path.lexists(index.parent / file)]:
        raise MoekitError(
            f"{index.parent} lacks {len(absent)} of the {len(shards)} files that {index.name} names, the first is "
            f"{absent[0][:80]}; download the folder again."
        )
    for file in shards:
        held = read(index.parent / file)
        named = {name for name, where in files.items() if where == file}
        if lacking := named - held.keys():
            raise MoekitError(f"{index.parent / file} lacks the tensor {min(lacking)!r} that {index} names.")
        passed_over += sorted(held.keys() - named - infos.keys())
        infos |= {name: held[name] for name in held if name in named}
    return infos, [name for name in passed_over if name not in infos]


def _index(index: Path) -> dict[str, str]:
    """Read from the index in which file each tensor is."""
    descriptor = _open(index)
    try:
        size = os.fstat(descriptor).st_size
        if size > _MOST_JSON_BYTES:
            raise ValueError(f"{size} bytes are too many")
        files = _json(_bytes(descriptor, 0, size)).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError("its weight_map doesn't give a file for each tensor")
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise MoekitError(f"{index} is no index of shards ({_plain(error)}); download it again.") from error
    finally:
        os.close(descriptor)
    for name, file in files.items():
        # Hugging Face's cache is made of links, so a plain name may be one that leads out; a path may not.
        if file in ("", ".", "..") or "/" in file or "\\" in file or not file.isprintable():
            raise MoekitError(f"{index} looks for the tensor {name!r} in {file!r}, which names no file in its folder.")
    return dict(files)


def _safetensors_infos(file: Path) -> dict[str, TensorInfo]:
    descriptor = _open(file)
    try:
        with safe_open(file, framework="pt"):
            pass  # opening checks: header within the file, types, sizes, neither gaps nor overlaps
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(_bytes(descriptor, 0, 8), "little")
        if length > min(size - 8, _MOST_JSON_BYTES):
            raise ValueError("its header is longer than the file")
        header = _json(_bytes(descriptor, 8, length))
        header.pop("__metadata__", None)
        return {name: _safetensors_info(file, name, entry, 8 + length, size) for name, entry in header.items()}
    except (SafetensorError, OSError, EOFError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise MoekitError(f"{file} is damaged or incomplete ({_plain(error)}); download it again.") from error
    finally:
        os.close(descriptor)


def _safetensors_info(file: Path, name: str, entry: dict[str, Any], data: int, file_size: int) -> TensorInfo:
    """Read a tensor's entry of the header, its bytes counted from `data`; ValueError where it can't be true."""
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UnknownForm(f"Tensor {name!r} in {file} has the type {entry['dtype']!r}, which moekit doesn't read.")
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not 0 <= begin <= end <= file_size - data or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the bytes of {name!r} do not fit its shape or the file")
    return TensorInfo(file=file, dtype=dtype, shape=shape, start=data + begin, size=end - begin)


def _pickled_infos(file: Path) -> dict[str, TensorInfo]:
    size = _identity(file).size
    try:
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type or member.file_size > size for member in archive.infolist()):
                raise ValueError("torch doesn't compress; unpacking could fill the memory")
            for member in archive.infolist():
                if "/data/" not in member.filename:  # all but the weights; reading checks the archive's checksum
                    archive.read(member)
        # To "meta": torch then notes where the data lies and reads none; mmap refuses the format before PyTorch 1.6.
        tensors = torch.load(file, weights_only=True, mmap=True, map_location="meta")
    except pickle.UnpicklingError as error:
        # Not the reason torch gives: it advises to run the file's code.
        raise UnknownForm(
            f"{file} is damaged or holds more than tensors, which could run code; convert it to safetensors."
        ) from error
    except Exception as error:  # torch raises many kinds on what is no file of its own
        raise MoekitError(
            f"{file} is damaged or older than PyTorch 1.6; download it again or convert it to safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise MoekitError(f"{file} is no dictionary of tensors.")
    return {name: _pickled_info(file, name, tensor, size) for name, tensor in tensors.items()}


def _pickled_info(file: Path, name: str, tensor: Any, file_size: int) -> TensorInfo:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.dtype not in DTYPES.values():
        raise MoekitError(f"{name!r} in {file} is no tensor of a type that moekit reads.")
    if not tensor.is_contiguous():
        raise MoekitError(f"Tensor {name!r} in {file} is not in row-major order; convert the folder to safetensors.")
    storage = tensor.untyped_storage()
    offset = getattr(storage, "_checkpoint_offset", None)
    if offset is None:
        raise MoekitError(f"This PyTorch can't tell where {name!r} lies in {file}; convert the folder to safetensors.")
    begin = tensor.storage_offset() * tensor.element_size()
    info = TensorInfo(
        file=file, dtype=tensor.dtype, shape=tuple(tensor.shape), start=offset + begin, size=tensor.nbytes
    )
    if begin + info.size > storage.nbytes() or info.start + info.size > file_size:
        raise MoekitError(f"Tensor {name!r} in {file} lies outside the file; download it again.")
    return info


def _json(text: bytes) -> dict[str, Any]:
    """Parse a JSON object in UTF-8.

    Raises:
        ValueError: where it is none, or has a key twice, which parsers resolve differently.
    """
    found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has {key!r} twice")
        found[key] = value
    return found


def _bytes(descriptor: int, position: int, count: int) -> bytes:
    """Read `count` bytes, which the caller has compared with the file's size."""
    got = os.pread(descriptor, count, position)
    if len(got) != count:
        raise EOFError("it ends early")
    return got


def _open(file: Path) -> int:
    """Open a file for reading; MoekitError where it is missing or not a file with bytes (a pipe would block)."""
    try:
        # Not blocking, or opening a pipe would wait for its writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not valid"
        raise MoekitError(f"{printable(str(file))} could not be opened: {reason}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MoekitError(f"{file} is no file.")
    return descriptor


def _identity(file: Path) -> _Identity:
    descriptor = _open(file)
    try:
        return _identity_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _identity_of(status: os.stat_result) -> _Identity:
    return _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _plain(error: Exception) -> str:
    """Say an error on one short line, without what a file could have put in to steer a terminal."""
    return printable(str(error)).strip(".")[:200]
