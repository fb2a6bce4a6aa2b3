"""A decoder that lies in a folder, its parameters by our names, read when they are asked for.

Rows are those of a parameter flattened to its last dimension: experts.gate_up_EGD has E · G of them, and a
vector as many as elements.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.gguf import is_gguf
from moekit.checkpoint.layout import Stored
from moekit.checkpoint.lora import AdaptedTensors, Adapter
from moekit.checkpoint.read_weights import dtype_of, memory_of
from moekit.checkpoint.views import Pair, pairs, pieces
from moekit.config import Config, DenseConfig, ModelConfig, MoEConfig
from moekit.core.errors import UsageError
from moekit.families import Family
from moekit.models.decoder import Decoder
from moekit.models.folder import layout_of, own_tensors
from moekit.models.gguf import open_gguf
from moekit.models.read_folder import open_checkpoint
from moekit.nn.meta import on_meta

_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Run:
    """Rows `begin` to `end` of a parameter are rows of the stored tensor `name`, from `stored_begin` on."""

    begin: int
    end: int
    name: str
    stored_begin: int


class StoredModel:
    """A folder or GGUF file with a decoder, read through a LoRA adapter if there is one.

    folder: the folder, or the file. settings: of its config.json. shapes: of our parameters, on the meta device.
    dtypes: in which they are stored.
    Raises UsageError where the folder holds no causal decoder, MoekitError where its files, or the adapter's, do not
    fit its configuration; no weight is read.
    """

    def __init__(self, folder: Path, adapter: Adapter | None = None) -> None:
        stored = open_gguf(folder) if is_gguf(folder) else open_checkpoint(folder, partial(_decoder, folder))
        assert isinstance(stored.config, ModelConfig)
        self.folder, self.family, self.config, self.adapter = folder, stored.family, stored.config, adapter
        self.settings = stored.settings.values
        self.layout, self.shapes = stored.layout, own_tensors(stored.model)
        self.tensors = stored.tensors if adapter is None else AdaptedTensors(stored.tensors, adapter)
        self.dtypes = dtype_of(self.layout, self.tensors)
        self._by_stored_name = {entry.name: entry for entry in self.layout if entry.name in self.tensors}
        self._entries: dict[str, list[Stored]] = {}
        for entry in self.layout:
            if not entry.optional:
                for ours in {part.ours for part in entry.parts}:  # of one parameter there may be several
                    self._entries.setdefault(ours, []).append(entry)
        self._all_runs: dict[str, list[Run] | None] = {}
        # What is read whole, though its rows are asked for one after the other, is kept until another is.
        self._held: tuple[str, Tensor] | None = None

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read rows of the parameter `name`, (end - begin, last dimension), in the type that it is stored in."""
        end = row_count(self.shapes[name]) if end is None else end
        runs = self.runs(name, begin, end)
        if runs is None:
            return self._assembled(name)[begin:end].clone()
        rows = torch.empty(end - begin, row_width(self.shapes[name]), dtype=self.dtypes[name])
        for run in runs:
            into = rows[run.begin - begin : run.end - begin]
            info = self.tensors[run.name]
            raw = into if info.dtype is rows.dtype else torch.empty(into.shape, dtype=info.dtype)
            self.tensors.read(run.name, run.stored_begin * rows.shape[1] * info.dtype.itemsize, memory_of(raw))
            if raw is not into:
                into.copy_(raw)
        return rows

    def parameter(self, name: str) -> Tensor:
        """Read a whole parameter in its shape."""
        return self.rows(name).view(self.shapes[name].shape)

    def memory_bytes(self, name: str) -> int:
        """Tell what reading some rows takes beside them: a buffer, or where they lie otherwise all of the parameter."""
        shape = self.shapes[name]
        return _READ_BYTES if self.runs(name, 0, row_count(shape)) else shape.numel() * self.dtypes[name].itemsize * 2

    def holds(self, entry: Stored, shapes: Mapping[str, Tensor]) -> bool:
        """Tell whether a tensor of another layout lies here under its name: the same elements in the same order.

        shapes: the parameters that the other layout is of.
        """
        ours = self._by_stored_name.get(entry.name)
        if ours is None or any(part.ours not in self.shapes for part in (*entry.parts, *ours.parts)):
            return False
        return _places(entry, shapes) == _places(ours, self.shapes)

    def runs(self, name: str, begin: int, end: int) -> list[Run] | None:
        """Give where the rows lie as they are; None where some lie otherwise."""
        if name not in self._all_runs:
            self._all_runs[name] = self._find_runs(name)
        runs = self._all_runs[name]
        if runs is None:
            return None
        cut = []
        for run in runs:
            first, last = max(run.begin, begin), min(run.end, end)
            if first < last:
                cut.append(Run(first, last, run.name, run.stored_begin + first - run.begin))
        return cut

    def _find_runs(self, name: str) -> list[Run] | None:
        """Find the runs of all rows, in their order."""
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
        """Read a parameter whose rows do not lie as they are, as rows."""
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


def _decoder(folder: Path, config: Config) -> Decoder:
    if not isinstance(config, ModelConfig):
        kind = config.model_dump().get("kind")
        raise UsageError(f"{folder} holds no decoder but another kind of model ({kind}); take one such as Llama's.")
    return Decoder(config)


def shapes_of(family: Family, config: ModelConfig, layout: int = 0) -> tuple[dict[str, Tensor], list[Stored]]:
    """Give our parameters on the meta device, and the stored tensors of such a model in that family's folders.

    layout: which of the family's ways to name them; 0 is the usual one, others follow in `other_layouts`.
    """
    with on_meta():
        model = Decoder(config)
    if layout:
        return own_tensors(model), list(family.other_layouts[layout - 1](config))
    return own_tensors(model), layout_of(family, config, model)


def row_width(parameter: Tensor) -> int:
    """Give the elements of a row; a vector is a column, because its elements may lie in several stored tensors."""
    return parameter.shape[-1] if parameter.dim() > 1 else 1


def row_count(parameter: Tensor) -> int:
    """Count the rows of a parameter."""
    return parameter.numel() // row_width(parameter)


def rows_of(pair: Pair, parameter: Tensor) -> range | None:
    """Give the rows of the parameter that a pair is, whole and in order; None where it is something else."""
    width = row_width(parameter)
    begin, size = int(pair.ours.storage_offset()), pair.ours.numel()
    if not pair.ours.is_contiguous() or begin % width or size % width:
        return None
    return range(begin // width, (begin + size) // width)


def dense_of(config: ModelConfig, layer: int) -> DenseConfig:
    """Give the layer's feed-forward network; AssertionError where it is a mixture."""
    found = config.feed_forwards[layer]
    assert isinstance(found, DenseConfig)
    return found


def moe_of(config: ModelConfig, layer: int) -> MoEConfig:
    """Give the layer's mixture; AssertionError where it is dense."""
    found = config.feed_forwards[layer]
    assert isinstance(found, MoEConfig)
    return found


def _run(entry: Stored, pair: Pair, parameter: Tensor) -> Run | None:
    rows, width, begin = rows_of(pair, parameter), row_width(parameter), int(pair.stored.storage_offset())
    if rows is None or not pair.stored.is_contiguous() or begin % width:
        return None
    return Run(rows.start, rows.stop, entry.name, begin // width)


def _places(entry: Stored, shapes: Mapping[str, Tensor]) -> list[object]:
    """Say which elements of which parameter lie where in a stored tensor."""
    found: list[object] = []
    for part, pair in zip(entry.parts, pairs(entry, shapes), strict=True):
        views = [(view.shape, view.stride(), view.storage_offset()) for view in (pair.ours, pair.stored)]
        found.append((part.ours, *views))
    return found
