"""Writing a GGUF file as a stream: tensor after tensor, each as chunks of bytes, so that memory does not grow with it.

Header, metadata and the list of tensors are written by the `gguf` package.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moekit.core import files
from moekit.core.errors import MoekitError, UsageError
from moekit.core.formatting import bytes_text
from moekit.kernels.packed import BlockType, Bytes

if TYPE_CHECKING:
    from gguf import GGUFWriter

_ALIGNMENT = 32

Written = int | float | bool | str | bytes | list[str] | list[int] | list[float]
"""What metadata may be when it is written: numbers become 4 bytes, integers without a sign, lists of them with one.

Bytes become an array of them.
"""


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """A tensor to write.

    Attributes:
        name: its name.
        type: the type that it is packed as.
        shape: the dimension whose numbers lie together is the last one.
        make: gives its bytes as rows (uint8), some at a time, in their order.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    make: Callable[[], Iterable[Bytes]]

    @property
    def size(self) -> int:
        """The bytes of the tensor."""
        rows = 1
        for extent in self.shape[:-1]:
            rows *= extent
        return rows * self.type.row_bytes(self.shape[-1])


def gguf_bytes(architecture: str, metadata: Mapping[str, Written], tensors: Sequence[OutputTensor]) -> int:
    """Compute the size in bytes of the file that `write_gguf` writes."""
    with tempfile.TemporaryDirectory() as folder:
        writer = _header(Path(folder) / "header", architecture, metadata, tensors)
        writer.close()
        size = (Path(folder) / "header").stat().st_size
    return _padded(size) + sum(_padded(tensor.size) for tensor in tensors)


def check_free(path: Path, needed: int) -> None:
    """Raise UsageError where something stands at `path`, MoekitError where its disk has less than `needed` bytes."""
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already; name another file.")
    free = files.free_bytes(path)
    if needed > free:
        raise MoekitError(f"{path} needs {bytes_text(needed)} and the disk has {bytes_text(free)} free.")


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Written],
    tensors: Sequence[OutputTensor],
    on_bytes: Callable[[int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file of GGUF version 3, all of it or nothing.

    Args:
        path: the new file.
        architecture: the value of general.architecture.
        metadata: the other values by key.
        tensors: the tensors, in the order of the file.
        on_bytes: called with the bytes of each chunk written.
        check: called with the whole file before it gets its name, which it does not get where this raises.

    Raises:
        UsageError: where something stands at `path`.
        MoekitError: where the disk is full.
    """
    check_free(path, gguf_bytes(architecture, metadata, tensors))
    with files.replacing(path) as temporary:
        writer = _header(temporary, architecture, metadata, tensors)
        try:
            assert writer.fout is not None
            stream = writer.fout[0]
            stream.write(bytes(_padded(stream.tell()) - stream.tell()))
            for tensor in tensors:
                written = 0
                for rows_RB in tensor.make():
                    stream.write(np.ascontiguousarray(rows_RB).data)
                    written += rows_RB.nbytes
                    if on_bytes is not None:
                        on_bytes(rows_RB.nbytes)
                if written != tensor.size:
                    raise AssertionError(f"{tensor.name!r} has {tensor.size} bytes, and {written} were made")
                stream.write(bytes(_padded(written) - written))
            stream.flush()
        finally:
            writer.close()
        if check is not None:
            check(temporary)


def _header(
    path: Path, architecture: str, metadata: Mapping[str, Written], tensors: Sequence[OutputTensor]
) -> "GGUFWriter":
    """Open a writer and write everything before the data."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(None, architecture)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for tensor in tensors:
        byte_shape = (*tensor.shape[:-1], tensor.type.row_bytes(tensor.shape[-1]))
        code = GGMLQuantizationType(tensor.type.code)
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), tensor.size, raw_dtype=code)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
