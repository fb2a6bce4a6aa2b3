"""The tensors of a model that is to be written, made of its parameters by our names and a family's layout."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import pairs
from moekit.convert.storage.output_tensors import Made, OutputTensor, Piece
from moekit.convert.stored_model import rows_of


class NewParameters(Protocol):
    """What the parameters of a new model are made of."""

    def dtype(self, name: str) -> torch.dtype:
        """Give the type of numbers that a parameter is written in."""
        ...

    def pieces(self, name: str, rows: range) -> Iterable[Piece]:
        """Give rows of a parameter (as in `StoredModel`) as pieces that follow each other."""
        ...

    def parameter(self, name: str) -> Tensor:
        """Read or compute a whole parameter in its shape."""
        ...

    def stored(self, entry: Stored) -> Piece | None:
        """Give a stored tensor that lies in a source in the same way; None where there is none."""
        ...


def output_tensors(
    layout: Sequence[Stored], shapes: Mapping[str, Tensor], parameters: NewParameters
) -> list[OutputTensor]:
    """Give the tensors of a layout as pieces. shapes: of our parameters, on the meta device."""
    return [_output_tensor(entry, shapes, parameters) for entry in layout]


def _output_tensor(entry: Stored, shapes: Mapping[str, Tensor], parameters: NewParameters) -> OutputTensor:
    found = pairs(entry, shapes)
    shape, dtype = tuple(entry.shape or found[0].stored.shape), parameters.dtype(entry.parts[0].ours)
    as_it_is = parameters.stored(entry)
    if as_it_is is not None:
        return OutputTensor(entry.name, dtype, shape, (as_it_is,))
    in_rows = sorted(zip(entry.parts, found, strict=True), key=lambda both: both[1].stored.storage_offset())
    pieces: list[Piece] = []
    for part, pair in in_rows:
        rows = rows_of(pair, shapes[part.ours])
        if rows is None or not pair.stored.is_contiguous():
            return OutputTensor(entry.name, dtype, shape, (_assembled(entry, shape, dtype, shapes, parameters),))
        pieces += parameters.pieces(part.ours, rows)
    return OutputTensor(entry.name, dtype, shape, tuple(pieces))


def _assembled(
    entry: Stored,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    shapes: Mapping[str, Tensor],
    parameters: NewParameters,
) -> Made:
    """Give a tensor whose parts do not lie in it row by row."""

    def make() -> Tensor:
        whole = {part.ours: parameters.parameter(part.ours) for part in entry.parts}
        result = torch.empty(shape, dtype=dtype)
        for pair in pairs(entry, whole):
            stored = pair.stored
            result.as_strided(stored.shape, stored.stride(), stored.storage_offset()).copy_(pair.ours)
        return result

    held = sum(shapes[name].numel() * 8 for name in {part.ours for part in entry.parts})
    return Made(make, shape, held + 2 * math.prod(shape) * dtype.itemsize, entry.name)
