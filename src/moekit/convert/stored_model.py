"""A decoder that lies in a folder, its parameters by our names, read when they are asked for.

Rows are those of a parameter flattened to its last dimension: experts.gate_up_EGD has E · G of them, and a
vector as many as elements.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.read_weights import check_weights, dtype_of, memory_of
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.views import Pair, pairs, pieces
from moekit.config import ModelConfig
from moekit.convert.storage.streaming_writer import Copy, Made, Piece
from moekit.core.errors import UsageError
from moekit.families import Family
from moekit.models import Decoder
from moekit.models.folder import layout_of, own_tensors, read_config
from moekit.nn.meta import on_meta

_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class _Run:
    """Rows `begin` to `end` of a parameter are rows of the stored tensor `name`, from `stored_begin` on."""

    begin: int
    end: int
    name: str
    stored_begin: int


class StoredModel:
    """A folder with a decoder.

    shapes: of our parameters, on the meta device. dtypes: in which they are stored. Raises UsageError where the folder
    holds no causal decoder, MoekitError where its files do not fit its configuration; no weight is read.
    """

    def __init__(self, folder: Path) -> None:
        family, config = read_config(folder)
        if not isinstance(config, ModelConfig):
            raise UsageError(f"{folder} holds no causal decoder ({family.model_type}).")
        self.folder, self.family, self.config = folder, family, config
        self.shapes, self.layout = shapes_of(family, config)
        self.tensors = StoredTensors.open(folder)
        check_weights(self.shapes, self.layout, self.tensors, ignored=family.ignored)
        self.dtypes = dtype_of(self.layout, self.tensors)
        self._entries: dict[str, list[Stored]] = {}
        for entry in self.layout:
            if not entry.optional:
                for part in entry.parts:
                    self._entries.setdefault(part.ours, []).append(entry)
        self._all_runs: dict[str, list[_Run] | None] = {}
        self._held: tuple[str, Tensor] | None = None

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows of the parameter `name`, (end - begin, last dimension), in the type it is stored in."""
        end = row_count(self.shapes[name]) if end is None else end
        runs = self._runs(name, begin, end)
        if runs is None:
            return self._assembled(name)[begin:end]
        rows = torch.empty(end - begin, row_width(self.shapes[name]), dtype=self.dtypes[name])
        for run in runs:
            info = self.tensors[run.name]
            row_bytes = rows.shape[1] * info.dtype.itemsize
            into = rows[run.begin - begin : run.end - begin]
            raw = into if info.dtype is rows.dtype else torch.empty(into.shape, dtype=info.dtype)
            self.tensors.read(run.name, run.stored_begin * row_bytes, memory_of(raw))
            if raw is not into:
                into.copy_(raw)
        return rows

    def parameter(self, name: str) -> Tensor:
        """The whole parameter in its shape."""
        return self.rows(name).view(self.shapes[name].shape)

    def pieces(self, name: str, begin: int, end: int) -> list[Piece]:
        """The rows as pieces of an output: copied where they lie as they are in the files."""
        runs, width = self._runs(name, begin, end), row_width(self.shapes[name])
        if runs is not None:
            return [self._piece(run, name) for run in runs]
        made = Made(lambda: self.rows(name, begin, end), (end - begin, width), self.memory_bytes(name), name)
        return [made]

    def memory_bytes(self, name: str) -> int:
        """What reading some of its rows takes beside them: a buffer, or where it lies otherwise the whole of it."""
        shape = self.shapes[name]
        return _READ_BYTES if self._runs(name, 0, row_count(shape)) else shape.numel() * self.dtypes[name].itemsize * 2

    def _piece(self, run: _Run, name: str) -> Piece:
        shape, width, count = self.tensors[run.name].shape, row_width(self.shapes[name]), run.end - run.begin
        each = math.prod(shape[1:]) // width  # rows of ours in one of the stored tensor's, which may be stacked
        if run.stored_begin % each == 0 and count % each == 0:
            begin = run.stored_begin // each
            return Copy(self.tensors, run.name, begin, begin + count // each)
        memory = count * width * self.dtypes[name].itemsize
        return Made(lambda: self.rows(name, run.begin, run.end), (count, width), memory, f"{name} {run.begin}")

    def _runs(self, name: str, begin: int, end: int) -> list[_Run] | None:
        """Where the rows lie as they are; None where some lie otherwise."""
        if name not in self._all_runs:
            self._all_runs[name] = self._find_runs(name)
        runs = self._all_runs[name]
        if runs is None:
            return None
        cut = []
        for run in runs:
            first, last = max(run.begin, begin), min(run.end, end)
            if first < last:
                cut.append(_Run(first, last, run.name, run.stored_begin + first - run.begin))
        return cut

    def _find_runs(self, name: str) -> list[_Run] | None:
        """Those of all rows, in their order."""
        found = []
        for entry in self._entries[name]:
            for part, pair in zip(entry.parts, pairs(entry, self.shapes), strict=True):
                if part.ours == name:
                    run = _run(entry, pair, self.shapes[name])
                    if run is None:
                        return None
                    found.append(run)
        return sorted(found, key=lambda run: run.begin)

    def _assembled(self, name: str) -> Tensor:
        """The parameter as rows; the last one is kept, because its rows are asked for one after the other."""
        if self._held is None or self._held[0] != name:
            whole = torch.empty(self.shapes[name].shape, dtype=self.dtypes[name])
            for entry in self._entries[name]:
                for part, pair in zip(entry.parts, pairs(entry, {**self.shapes, name: whole}), strict=True):
                    if part.ours == name:
                        self._read(entry.name, pair)
            self._held = (name, whole.view(-1, row_width(whole)))
        return self._held[1]

    def _read(self, stored: str, pair: Pair) -> None:
        info = self.tensors[stored]
        for piece in pieces(pair, info.dtype.itemsize, _READ_BYTES):
            raw = torch.empty(piece.span(), dtype=info.dtype)
            self.tensors.read(stored, int(piece.stored.storage_offset()) * info.dtype.itemsize, memory_of(raw))
            piece.ours.copy_(raw.as_strided(piece.stored.shape, piece.stored.stride()))


def shapes_of(family: Family, config: ModelConfig) -> tuple[dict[str, Tensor], list[Stored]]:
    """Our parameters on the meta device, and the stored tensors of such a model in that family's folders."""
    with on_meta():
        model = Decoder(config)
    return own_tensors(model), layout_of(family, config, model)


def row_width(parameter: Tensor) -> int:
    """Elements of a row; a vector is a column, because its elements may lie in several stored tensors."""
    return parameter.shape[-1] if parameter.dim() > 1 else 1


def row_count(parameter: Tensor) -> int:
    """Rows of a parameter."""
    return parameter.numel() // row_width(parameter)


def rows_of(pair: Pair, parameter: Tensor) -> range | None:
    """The rows of the parameter that a pair is, whole and in their order; None where it is something else."""
    width = row_width(parameter)
    begin, size = int(pair.ours.storage_offset()), pair.ours.numel()
    if not pair.ours.is_contiguous() or begin % width or size % width:
        return None
    return range(begin // width, (begin + size) // width)


def _run(entry: Stored, pair: Pair, parameter: Tensor) -> _Run | None:
    rows, width, begin = rows_of(pair, parameter), row_width(parameter), int(pair.stored.storage_offset())
    if rows is None or not pair.stored.is_contiguous() or begin % width:
        return None
    return _Run(rows.start, rows.stop, entry.name, begin // width)
