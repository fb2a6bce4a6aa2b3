"""GGUF files, read where they lie: the file is mapped, and a tensor is a view of it.

Nothing in a file is trusted: counts, lengths, offsets and dimensions are compared with the size of the file before
anything is allocated or looped over. Where a file becomes shorter while it is in use, the process ends with a sentence.
"""

import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from moekit.checkpoint.gguf.metadata import Metadata, short
from moekit.checkpoint.gguf.tensor_types import PACKED_TYPES, STORED_TYPES, StoredType
from moekit.checkpoint.gguf.values import Cursor, Damaged, Value
from moekit.core.errors import MoekitError
from moekit.kernels.native.mapped_files import watch
from moekit.kernels.packed import Bytes, Numbers, PackedMatrix, dequantize

_MAGIC = b"GGUF"
# llama.cpp's llama_split_path.
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_DIMENSIONS = 4
# A header of a key or a tensor takes more; so a count that passes is one that the file can hold.
_LEAST_KEY_BYTES, _LEAST_TENSOR_BYTES = 13, 32
# What is read of a header takes some times its bytes in memory; real files have thousands.
_MOST_ENTRIES = 1_000_000
_READ_ROWS_BYTES = 16 << 20


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of the file.

    Attributes:
        name: its name.
        code: the number of its type, as ggml counts types.
        shape: the dimension whose numbers lie together is the last one; the file says it the other way round.
        start: its first byte in the file.
        size: its number of bytes.
        part: which file of a split model it lies in, counted from 0.
    """

    name: str
    code: int
    shape: tuple[int, ...]
    start: int
    size: int
    part: int = 0

    @property
    def type(self) -> StoredType:
        """The type of its numbers."""
        return STORED_TYPES[self.code]

    @property
    def columns(self) -> int:
        """The numbers of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """The rows of the tensor as a matrix, its leading dimensions on end."""
        return math.prod(self.shape[:-1])


class GGUFFile:
    """A GGUF file that is open for reading, or all files of a split model, of which any is named.

    Views that it gives stay valid after it is gone.

    Attributes:
        path: the file that was named.
        metadata: the values by key.
        tensors: the tensors by name, in the order of the files.

    Raises:
        MoekitError: naming file and place where it is no GGUF of version 2 or 3, or damaged in any way that its first
            part tells, or where a file of a split model is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        named = _Part(path)
        paths = split_paths(path, named.metadata.get_as(int, "split.count", 1))
        self._parts = [named if part == path else _Part(part) for part in paths]
        self.metadata = self._parts[0].metadata
        self.tensors: Mapping[str, GGUFTensor] = self._parts[0].tensors
        if len(self._parts) > 1:
            self.tensors = _together(self._parts)

    def bytes_of(self, name: str) -> Bytes:
        """Give the bytes of a tensor as rows (rows, bytes of a row): a view of the file, which cannot be written to."""
        tensor = self[name]
        data_B = self._parts[tensor.part].data_B
        return data_B[tensor.start : tensor.start + tensor.size].reshape(tensor.rows, -1)

    def expect_single_rows(self, name: str) -> None:
        """Tell the system that rows of a tensor are read here and there: it brings nothing around them into memory."""
        tensor = self[name]
        begin = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        size = tensor.start + tensor.size - begin
        self._parts[tensor.part].mapping.madvise(mmap.MADV_RANDOM, begin, size)

    @property
    def paths(self) -> list[Path]:
        """List the files; a tensor's `part` counts them."""
        return [part.path for part in self._parts]

    def file_of(self, name: str) -> Path:
        """Give the file in which a tensor lies."""
        return self._parts[self[name].part].path

    def packed(self, name: str) -> PackedMatrix:
        """Give the tensor as a matrix where it lies; MoekitError where moekit does not compute with its type."""
        tensor = self[name]
        if tensor.code not in PACKED_TYPES:
            raise MoekitError(
                f"Tensor {name!r} in {self.path} is of type {tensor.type.name}, which is not computed with."
            )
        return PackedMatrix(self.bytes_of(name), PACKED_TYPES[tensor.code], tensor.columns)

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Numbers:
        """Unpack rows of the tensor to numbers, (end - begin, columns): a copy.

        Raises:
            MoekitError: where neither moekit nor the `gguf` package knows the type.
        """
        tensor = self[name]
        raw_RB = self.bytes_of(name)[begin:end]
        if tensor.code in PACKED_TYPES:
            return dequantize(PackedMatrix(raw_RB, PACKED_TYPES[tensor.code], tensor.columns))
        return _by_package(tensor, raw_RB, self.path)

    def numbers(self, name: str) -> Numbers:
        """Unpack all of the tensor to numbers, in its shape."""
        return self.rows(name).reshape(self[name].shape)

    def chunks(self, name: str) -> Iterator[tuple[int, Numbers]]:
        """Unpack the rows to numbers, some at a time, each chunk with the index of its first row."""
        tensor = self[name]
        step = max(1, _READ_ROWS_BYTES // (4 * tensor.columns))
        for begin in range(0, tensor.rows, step):
            yield begin, self.rows(name, begin, min(begin + step, tensor.rows))

    def __getitem__(self, name: str) -> GGUFTensor:
        if name not in self.tensors:
            raise MoekitError(f"{self.path} lacks the tensor {name!r}; it is of another model or incomplete.")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


class _Part:
    """One file, and what its first part says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = _mapped(path)
        try:
            self._read(memoryview(data))
        except Damaged as error:
            raise MoekitError(f"{path} is damaged or incomplete ({short(str(error))}); get it again.") from error
        self.mapping, self.data_B = data, np.frombuffer(data, np.uint8)

    def _read(self, data: memoryview) -> None:
        cursor = Cursor(data)
        tensors, keys = self._counts(cursor)
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = cursor.text("a key")
            if key in metadata:
                raise Damaged(f"it has the key {key!r} twice")
            metadata[key] = cursor.value(key)
        self.metadata = Metadata(metadata, self.path)
        alignment = self.metadata.get_as(int, "general.alignment", 32)
        # Less than 8 would not do for numbers of 8 bytes.
        if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise Damaged(f"general.alignment is {alignment}")
        described = [self._described(cursor) for _ in range(tensors)]
        first = -(-cursor.position // alignment) * alignment
        self.tensors = _placed(described, first, alignment, len(data))

    def _counts(self, cursor: Cursor) -> tuple[int, int]:
        """Read the numbers of tensors and of keys, and check that the rest of the file has room for both."""
        if bytes(cursor.data[:4]) != _MAGIC:
            raise MoekitError(f"{self.path} is no GGUF file.")
        cursor.position = 4
        version = cursor.u32()
        if version & 0xFFFF == 0 and version:
            raise MoekitError(f"{self.path} is a big-endian GGUF file, which moekit doesn't read.")
        if version not in (2, 3):
            raise MoekitError(f"{self.path} is of GGUF version {version}, and moekit reads 2 and 3.")
        tensors, keys = cursor.u64(), cursor.u64()
        left = len(cursor.data) - cursor.position
        if max(tensors, keys) > _MOST_ENTRIES or tensors * _LEAST_TENSOR_BYTES + keys * _LEAST_KEY_BYTES > left:
            raise Damaged(f"{tensors} tensors and {keys} keys do not fit the file")
        return tensors, keys

    def _described(self, cursor: Cursor) -> GGUFTensor:
        """Read what the file says of a tensor; its start still counts from where the data begins."""
        name = cursor.text("a tensor's name")
        dimensions = cursor.u32()
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise Damaged(f"{name!r} has {dimensions} dimensions")
        shape = tuple(reversed([cursor.u64() for _ in range(dimensions)]))
        code, start = cursor.u32(), cursor.u64()
        if code not in STORED_TYPES:
            raise MoekitError(f"Tensor {short(name)!r} in {self.path} is of the unknown type {code}.")
        kind = STORED_TYPES[code]
        # Python's integers do not overflow; a size beyond the file is found when it is placed.
        if 0 in shape or shape[-1] % kind.numbers:
            raise Damaged(f"{name!r} has the shape {list(shape)}, which is no whole blocks of {kind.name}")
        return GGUFTensor(name, code, shape, start, math.prod(shape) // kind.numbers * kind.size)


def is_gguf(path: Path) -> bool:
    """Tell whether the file begins as GGUF files do, or is named like one."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC or path.suffix == ".gguf"
    except OSError as error:
        raise MoekitError(f"Cannot read {path}: {error.strerror}.") from error


def split_paths(path: Path, count: int) -> list[Path]:
    """List the files of a model that is split into `count`, one of which is `path`.

    Raises:
        MoekitError: where one is missing, or the name does not say which of them it is.
    """
    if count <= 1:
        return [path]
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or not 1 <= int(match["number"]) <= count:
        raise MoekitError(
            f"{path} is one of {count} files of a split model, and its name does not say which; "
            f"it ends in -00001-of-{count:05}.gguf where it is the first."
        )
    paths = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [one.name for one in paths if not one.exists()]
    if missing:
        raise MoekitError(
            f"{path} is one of {count} files of a split model, of which {len(missing)} are missing beside it, "
            f"{missing[0]} first; get them, too."
        )
    return paths


def _together(parts: Sequence[_Part]) -> dict[str, GGUFTensor]:
    """Put the tensors of all files of a split model together."""
    found: dict[str, GGUFTensor] = {}
    for index, part in enumerate(parts):
        number = part.metadata.get_as(int, "split.no", -1), part.metadata.get_as(int, "split.count", 1)
        if number != (index, len(parts)):
            raise part.metadata.problem("split.no", f"is {number[0]} of {number[1]}, which its name does not say")
        if twice := found.keys() & part.tensors.keys():
            raise MoekitError(f"{part.path} holds the tensor {min(twice)!r}, which another file holds, too.")
        found |= {name: replace(tensor, part=index) for name, tensor in part.tensors.items()}
    expected = parts[0].metadata.get_as(int, "split.tensors.count", len(found))
    if expected != len(found):
        raise parts[0].metadata.problem("split.tensors.count", f"is {expected}, and the files hold {len(found)}")
    return found


def _placed(described: list[GGUFTensor], first: int, alignment: int, file_size: int) -> dict[str, GGUFTensor]:
    """Place the tensors in the file, and check that they are inside it, aligned, and none over another."""
    placed: dict[str, GGUFTensor] = {}
    for tensor in described:
        if tensor.name in placed:
            raise Damaged(f"it has the tensor {tensor.name!r} twice")
        start = first + tensor.start
        if tensor.start % alignment or start + tensor.size > file_size:
            raise Damaged(f"{tensor.name!r} lies outside the file or across its alignment")
        placed[tensor.name] = GGUFTensor(tensor.name, tensor.code, tensor.shape, start, tensor.size)
    in_order = sorted(placed.values(), key=lambda tensor: tensor.start)
    for before, after in pairwise(in_order):
        if before.start + before.size > after.start:
            raise Damaged(f"{before.name!r} and {after.name!r} lie over each other")
    return placed


def _mapped(path: Path) -> mmap.mmap:
    """Map all of the file, read-only; MoekitError where there is no file, or an empty one."""
    try:
        # Not blocking, or opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not valid"
        raise MoekitError(f"{short(str(path))} could not be opened: {reason}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise MoekitError(f"{path} is no file, or an empty one.")
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        watch(data, path)
        return data
    except OSError as error:
        raise MoekitError(f"{path} could not be mapped: {error.strerror}.") from error
    finally:
        os.close(descriptor)


def _by_package(tensor: GGUFTensor, raw_RB: Bytes, path: Path) -> Numbers:
    """Unpack a type that only the `gguf` package knows."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as package_dequantize

    try:
        numbers = package_dequantize(raw_RB, GGMLQuantizationType(tensor.code))
    except NotImplementedError as error:
        raise MoekitError(
            f"Tensor {tensor.name!r} in {path} is of type {tensor.type.name}, which moekit doesn't read."
        ) from error
    return np.asarray(numbers, np.float32).reshape(len(raw_RB), tensor.columns)
