"""Whether two stored tensors hold the same numbers, read a piece at a time."""

import torch

from moekit.checkpoint.read_weights import memory_of
from moekit.checkpoint.stored_tensors import StoredTensors

_PIECE_BYTES = 16 << 20


def same_values(tensors: StoredTensors, a: str, b: str) -> bool:
    """Tell whether the tensors `a` and `b` have the same shape and numbers; their types may differ.

    Raises:
        MoekitError: where a file cannot be read.
    """
    if tensors[a].shape != tensors[b].shape:
        return False
    count = torch.Size(tensors[a].shape).numel()
    step = _PIECE_BYTES // max(tensors[a].dtype.itemsize, tensors[b].dtype.itemsize)
    for first in range(0, count, step):
        pieces = [_numbers(tensors, name, first, min(step, count - first)) for name in (a, b)]
        if not torch.equal(*(piece.double() for piece in pieces)):
            return False
    return True


def _numbers(tensors: StoredTensors, name: str, first: int, count: int) -> torch.Tensor:
    dtype = tensors[name].dtype
    numbers = torch.empty(count, dtype=dtype)
    tensors.read(name, first * dtype.itemsize, memory_of(numbers))
    return numbers
