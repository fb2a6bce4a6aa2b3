"""A mixture that is to be written: its parameters by our names and its tensors by a layout, made of other models."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import pairs, stored_shape
from moekit.config import ModelConfig
from moekit.convert.expert_channels import Mixture, zeros
from moekit.convert.model_pieces import pieces_of, stored_piece
from moekit.convert.storage.output_tensors import Made, OutputTensor, Piece, rows_of_pieces, tensor_of
from moekit.models.stored_model import StoredModel, row_count, row_width, rows_of


@dataclass(frozen=True, kw_only=True)
class MixtureModel:
    """A model made of dense ones: its mixtures of their networks, everything else of the base, or the mean of several.

    base: what else it is made of. config, shapes, layout: of the new model. mixtures: by layer. averaged: models whose
    mean stands for what is the base's, if there are any. dtype_of_all: of the result; None: each tensor keeps its own.
    """

    base: StoredModel
    config: ModelConfig
    shapes: Mapping[str, Tensor]
    layout: Sequence[Stored]
    mixtures: Mapping[int, Mixture]
    averaged: tuple[StoredModel, ...] = ()
    dtype_of_all: torch.dtype | None = None

    @cached_property
    def tensors(self) -> list[OutputTensor]:
        """All that is written, in the layout's order. What lies in the base's folder in the same way is copied."""
        return [self._output_tensor(entry) for entry in self.layout]

    def dtype(self, name: str) -> torch.dtype:
        """Give the type that a parameter is written in: that of the whole result, else that of what it is made of."""
        if self.dtype_of_all is not None:
            return self.dtype_of_all
        if name in self.base.dtypes:
            return self.base.dtypes[name]
        layer, _, role = name.partition(".feed_forward.")
        if role:
            return self.mixtures[int(layer.split(".")[1])].dtype(role)
        return self.base.dtypes[name.replace(".bias", ".weight")]  # that the format wants and the base has not

    def pieces(self, name: str, rows: range) -> Iterable[Piece]:
        """Give rows of a parameter (as in `StoredModel`) as pieces that follow each other."""
        layer, _, role = name.partition(".feed_forward.")
        if name not in self.base.shapes:
            if role:
                return self.mixtures[int(layer.split(".")[1])].pieces(role, rows, self.shapes[name])
            return [zeros((len(rows),))]
        models = self.averaged or (self.base,)
        if len(models) == 1:
            return pieces_of(models[0], name, rows.start, rows.stop)
        shape = (len(rows), row_width(self.shapes[name]))
        return [_average(shape, lambda: (model.rows(name, rows.start, rows.stop) for model in models))]

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read or compute rows of a parameter, (end - begin, last dimension)."""
        end = row_count(self.shapes[name]) if end is None else end
        return rows_of_pieces(self.pieces(name, range(begin, end)), row_width(self.shapes[name]), self.dtype(name))

    def parameter(self, name: str) -> Tensor:
        """Read or compute a whole parameter in its shape."""
        return self.rows(name).view(self.shapes[name].shape)

    def _output_tensor(self, entry: Stored) -> OutputTensor:
        shape, dtype = stored_shape(entry, self.shapes), self.dtype(entry.parts[0].ours)
        if self.base.holds(entry, self.shapes):
            return OutputTensor(entry.name, dtype, shape, (self._as_stored(entry.name, shape),))
        found = zip(entry.parts, pairs(entry, self.shapes), strict=True)
        pieces: list[Piece] = []
        for part, pair in sorted(found, key=lambda both: both[1].stored.storage_offset()):
            rows = rows_of(pair, self.shapes[part.ours])
            if rows is None or not pair.stored.is_contiguous():
                return OutputTensor(entry.name, dtype, shape, (self._assembled(entry, shape, dtype),))
            pieces += self.pieces(part.ours, rows)
        return OutputTensor(entry.name, dtype, shape, tuple(pieces))

    def _as_stored(self, name: str, shape: tuple[int, ...]) -> Piece:
        """Give a tensor of the base's folder, or the mean of such."""
        models = self.averaged or (self.base,)
        if len(models) == 1:
            return stored_piece(models[0], name)
        return _average(shape, lambda: (tensor_of(stored_piece(model, name)) for model in models))

    def _assembled(self, entry: Stored, shape: tuple[int, ...], dtype: torch.dtype) -> Made:
        """Give a tensor whose parts do not lie in it row by row."""
        names = {part.ours for part in entry.parts}

        def make() -> Tensor:
            result = torch.empty(shape, dtype=dtype)
            for pair in pairs(entry, {name: self.parameter(name) for name in names}):
                stored = pair.stored
                result.as_strided(stored.shape, stored.stride(), stored.storage_offset()).copy_(pair.ours)
            return result

        held = sum(self.shapes[name].numel() * 8 for name in names)
        return Made(make, shape, held + 2 * math.prod(shape) * dtype.itemsize, entry.name)


def _average(shape: tuple[int, ...], read: Callable[[], Iterable[Tensor]]) -> Made:
    """Give the mean of tensors, summed in fp32, in the type of the first."""

    def make() -> Tensor:
        found = iter(read())
        first = next(found)
        total, count = first.float(), 1
        for tensor in found:
            total, count = total + tensor.float(), count + 1
        return (total / count).to(first.dtype)

    return Made(make, shape, 16 * math.prod(shape), "average")
