"""Headers, shards and the index of safetensors files, from names, types and shapes alone."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from moekit.checkpoint.stored_tensors import DTYPES
from moekit.core.errors import MoekitError

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_ORDER = {dtype: position for position, dtype in enumerate(DTYPES.values())}


class Described(Protocol):
    """A tensor as a header describes it."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


D = TypeVar("D", bound=Described)


def size_of(tensor: Described) -> int:
    """Count the bytes of the tensor's data."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def shards_of(tensors: Sequence[D], shard_bytes: int) -> dict[str, list[D]]:
    """Distribute tensors over the files of a folder, as the safetensors library would lay it out.

    Tensors that stand next to each other come together, at most `shard_bytes` a file (a single larger tensor excepted),
    inside a file the widest types first, then by name.

    Returns:
        The names of the files, each with its tensors.

    Raises:
        MoekitError: naming a tensor whose type no file can hold.
    """
    shards: list[list[D]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if tensor.dtype not in _CODES:
            raise MoekitError(f"Tensor {tensor.name!r} is of type {tensor.dtype}, which moekit doesn't write.")
        if size_of(tensor) > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size_of(tensor)
    count = len(shards)
    numbered = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    names = ["model.safetensors"] if count == 1 else numbered
    return {
        name: sorted(shard, key=lambda tensor: (_ORDER[tensor.dtype], tensor.name))
        for name, shard in zip(names, shards, strict=True)
    }


def header_of(tensors: Sequence[Described], metadata: Mapping[str, str]) -> bytes:
    """Make the beginning of a file: the length and the JSON, padded so that the data begins on a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for tensor in tensors:
        end = begin + size_of(tensor)
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def index_of(shards: Mapping[str, Sequence[Described]]) -> str:
    """Make the text of model.safetensors.index.json."""
    total = sum(size_of(tensor) for shard in shards.values() for tensor in shard)
    weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    return (
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"
    )
