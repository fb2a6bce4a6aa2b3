"""A tensor to write, as pieces: rows of stored tensors, copied as they are, or numbers that are computed."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.checkpoint.read_weights import memory_of
from moekit.checkpoint.stored_tensors import StoredTensors


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


def tensor_of(piece: Piece) -> Tensor:
    """Read or compute a piece."""
    if isinstance(piece, Made):
        return piece.make()
    info = piece.tensors[piece.name]
    found = torch.empty(piece.shape, dtype=info.dtype)
    row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
    piece.tensors.read(piece.name, piece.begin_row * row_bytes, memory_of(found))
    return found


def whole_tensor(tensor: OutputTensor) -> Tensor:
    """Read or compute an output tensor in its shape and type."""
    return rows_of_pieces(tensor.pieces, 1, tensor.dtype).reshape(tensor.shape)


def rows_of_pieces(pieces: Iterable[Piece], width: int, dtype: torch.dtype) -> Tensor:
    """Read or compute pieces that follow each other, as rows of `width` numbers of that type."""
    parts = [tensor_of(piece).to(dtype).reshape(-1, width) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
