"""A merged model: every parameter, by our names, as pieces of the models' parameters or computed from them.

L layers, E experts, D model width, F feed-forward width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.config import ModelConfig
from moekit.convert.merging.merge_config import DRAWN_MODES, MergeConfig
from moekit.convert.merging.mergekit_arithmetic import Draw, Noise, drawn_gates, noise_order
from moekit.convert.merging.output_formats import Output
from moekit.convert.mixture_model import output_tensors
from moekit.convert.storage.output_tensors import Copy, Made, OutputTensor, Piece, rows_of_pieces
from moekit.convert.stored_model import StoredModel, dense_of, row_count, row_width, shapes_of

Matrix = Literal["gate", "up", "down"]
ROUTERS = ("router.weight", "branch_gate.weight")
"""The ends of the names of what decides where tokens go: routers, and gates of shared experts."""


@dataclass(frozen=True, kw_only=True)
class MergedModel:
    """The models of a merge, which fit each other, and what becomes of them.

    experts: the routed ones, then the shared ones, a model for each of `recipe.all_experts`. dtype: of the result;
    None: each tensor keeps its own. routers: the tensors whose names end as ROUTERS; None before they are made
    (`gates.make_gates`). routers_key: tells them from others, so that a run with other routers does not go on.
    """

    recipe: MergeConfig
    output: Output
    base: StoredModel
    experts: tuple[StoredModel, ...]
    dtype_of_all: torch.dtype | None
    seed: int
    fused: bool
    routers: Mapping[str, Tensor] | None = None
    routers_key: str = ""

    @property
    def config(self) -> ModelConfig:
        """Our configuration of the result."""
        return self.output.config

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """The parameters of the result, on the meta device."""
        return self._shapes_and_layout[0]

    @cached_property
    def tensors(self) -> list[OutputTensor]:
        """All that is written, in its order."""
        shapes, layout = self._shapes_and_layout
        return output_tensors(layout, shapes, self)

    @cached_property
    def router_names(self) -> Mapping[str, str]:
        """The parameters that are routers, or gates of shared experts, and their names in the result's folder."""
        ours = {entry.parts[0].ours: entry.name for entry in self._shapes_and_layout[1]}
        return {name: stored for name, stored in ours.items() if name.endswith(ROUTERS)}

    def with_routers(self, routers: Mapping[str, Tensor], key: str) -> "MergedModel":
        """Give the same model with these routers; `key` tells them from others."""
        return replace(self, routers=dict(routers), routers_key=key)

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read or compute rows of a parameter of the result, (end - begin, last dimension)."""
        end = row_count(self.shapes[name]) if end is None else end
        pieces = list(self.pieces(name, range(begin, end)))
        return rows_of_pieces(pieces, row_width(self.shapes[name]), self.dtype(name))

    def parameter(self, name: str) -> Tensor:
        """Read or compute a whole parameter of the result in its shape."""
        return self.rows(name).view(self.shapes[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Give the type that a parameter is written in: that of the whole merge, else that of its models."""
        if self.dtype_of_all is not None:
            return self.dtype_of_all
        if name.endswith(ROUTERS):
            return torch.bfloat16 if self.recipe.gate_mode.startswith("hidden") else torch.float32
        if ".feed_forward." in name:
            source, role = self.experts[-1 if ".branch." in name else 0], "bias" if "bias" in name else "weight"
            return source.dtypes[f"{_layer(name)}.feed_forward.{'down' if 'down' in name else 'gate_up'}.{role}"]
        return self.base.dtypes.get(name) or self.base.dtypes[name.replace(".bias", ".weight")]

    def stored(self, entry: Stored) -> Piece | None:
        """Give a tensor of the backbone as it lies in the base model's folder, or the mean of such."""
        if not self.base.holds(entry, self.shapes):
            return None
        sources = self._backbone
        if len(sources) == 1:
            return sources[0].stored_piece(entry.name)
        shape = self.base.tensors[entry.name].shape
        return _average(shape, lambda: (source.read_stored(entry.name) for source in sources))

    def pieces(self, name: str, rows: range) -> Iterator[Piece]:
        """Give rows of a parameter of the result as pieces that follow each other."""
        if name.endswith(ROUTERS):
            shape = (len(rows), row_width(self.shapes[name]))
            key = self.routers_key or f"seed {self.seed}"
            yield Made(lambda: self._router(name)[rows.start : rows.stop], shape, math.prod(shape) * 4, key)
        elif ".feed_forward." in name:
            yield from self._network_pieces(name, rows)
        elif name in self.base.shapes:
            yield from self._backbone_pieces(name, rows)
        else:  # a bias that the format wants and the base has not
            dtype = self.dtype(name)
            yield Made(lambda: torch.zeros(len(rows), dtype=dtype), (len(rows),), len(rows) * 4, "zeros")

    @property
    def _backbone(self) -> tuple[StoredModel, ...]:
        return self.experts[: len(self.recipe.experts)] if self.recipe.backbone == "average" else (self.base,)

    @cached_property
    def _shapes_and_layout(self) -> tuple[dict[str, Tensor], list[Stored]]:
        shapes, layout = shapes_of(self.output.family, self.config, int(self.fused))
        # A copy of tied embeddings goes along where the base model's folder has one.
        kept = [entry for entry in layout if not entry.optional or entry.name in self.base.tensors]
        return shapes, sorted(kept, key=self._place)

    def _place(self, entry: Stored) -> tuple[int, int]:
        """Sort layers, and in each what the base has not (biases) behind its attention.

        Version 0.1.0 wrote them in this order; runs that it began go on.
        """
        ours = entry.parts[0].ours
        layer = int(ours.split(".")[1]) if ours.startswith("layers.") else -1
        behind = 2 if ".feed_forward." in ours else int(ours not in self.base.shapes)
        return layer, behind

    def _router(self, name: str) -> Tensor:
        assert self.routers is not None, "the gates are made before their values are needed"
        return self.routers[name]

    def _backbone_pieces(self, name: str, rows: range) -> Iterable[Piece]:
        sources = self._backbone
        if len(sources) == 1:
            return map(_without_end, sources[0].pieces(name, rows.start, rows.stop))
        shape = (len(rows), row_width(self.shapes[name]))
        return [_average(shape, lambda: (source.rows(name, rows.start, rows.stop) for source in sources))]

    def _network_pieces(self, name: str, rows: range) -> Iterator[Piece]:
        """Give rows of the experts' matrices or biases, or of the shared expert's."""
        first, count = (len(self.recipe.experts), 1) if ".branch." in name else (0, len(self.recipe.experts))
        each = row_count(self.shapes[name]) // count
        if name.endswith(("_bias_EG", "_bias_ED")):  # a row an expert here, a row an element in the models
            each = row_width(self.shapes[name])
            rows = range(rows.start * each, rows.stop * each)
        for expert in range(rows.start // each, -(-rows.stop // each)):
            own = range(max(rows.start - expert * each, 0), min(rows.stop - expert * each, each))
            yield from self._expert(first + expert, _layer(name), own, is_down="down" in name, is_bias="bias" in name)

    def _expert(self, expert: int, layer: str, rows: range, *, is_down: bool, is_bias: bool) -> Iterator[Piece]:
        """Give rows of an expert's down, or of its gate over up; of their biases, if `is_bias`, elements."""
        name = f"{layer}.feed_forward.{'down' if is_down else 'gate_up'}.{'bias' if is_bias else 'weight'}"
        for matrix, begin, end in self._matrices(expert, layer, name, is_down=is_down):
            first, last = max(rows.start, begin), min(rows.stop, end)
            if first < last:
                yield from self._changed(expert, layer, name, matrix, range(first, last), begin, is_bias=is_bias)

    def _matrices(self, expert: int, layer: str, name: str, *, is_down: bool) -> list[tuple[Matrix, int, int]]:
        """Give the matrices that a parameter of a dense network holds, and from which row to which."""
        dense = dense_of(self.base.config, int(layer.split(".")[1]))
        count = row_count(self.experts[expert].shapes[name])
        if is_down:
            return [("down", 0, count)]
        return [("gate", 0, dense.width), ("up", dense.width, count)] if dense.gated else [("up", 0, count)]

    def _changed(
        self, expert: int, layer: str, name: str, matrix: Matrix, rows: range, begin: int, *, is_bias: bool
    ) -> Iterable[Piece]:
        """Give rows of one matrix with the expert's noise and scale; biases have no noise."""
        source, asked = self.experts[expert], self.recipe.all_experts[expert]
        noise = None if is_bias else asked.noise_scale
        scale = asked.residual_scale if matrix == "down" else None
        if noise is None and scale is None:
            return map(_without_end, source.pieces(name, rows.start, rows.stop))

        def make() -> Tensor:
            found = source.rows(name, rows.start, rows.stop)
            if noise is not None:
                drawn = self._noise.of((int(layer.split(".")[1]), expert, matrix))
                found = found + drawn[rows.start - begin : rows.stop - begin] * noise
            return found if scale is None else found * scale

        shape = (len(rows), row_width(source.shapes[name]))
        memory = 3 * math.prod(shape) * source.dtypes[name].itemsize + source.memory_bytes(name)
        key = f"noise {asked.noise_scale} seed {self.seed} scale {asked.residual_scale}"
        return [Made(make, shape, memory, key)]

    @cached_property
    def _noise(self) -> Noise:
        """The noise of all experts that have a scale for it, drawn after the gates that are drawn."""
        generator, layers = torch.Generator().manual_seed(self.seed), len(self.config.layers)
        if self.recipe.gate_mode in DRAWN_MODES:
            drawn_gates(self.recipe.gate_mode, layers, len(self.experts), self.config.width, generator)
        draws = []
        order = self.output.format.network_order
        for layer, expert, matrix in noise_order(order, self.output.format.matrix_by_matrix, layers, len(self.experts)):
            dense = dense_of(self.base.config, layer)
            if self.recipe.all_experts[expert].noise_scale is None or (matrix == "gate" and not dense.gated):
                continue
            wide, part = (dense.width, self.config.width), "down" if matrix == "down" else "gate_up"
            dtype = self.experts[expert].dtypes[f"layers.{layer}.feed_forward.{part}.weight"]
            draws.append(Draw((layer, expert, matrix), wide[::-1] if matrix == "down" else wide, dtype))
        return Noise(generator, draws)


def _layer(name: str) -> str:
    """Give the beginning of a parameter's name, `layers.3`."""
    return name.split(".feed_forward.")[0]


def _without_end(piece: Piece) -> Piece:
    """Say of a whole tensor no end: runs that version 0.1.0 began compare what pieces say."""
    if isinstance(piece, Copy) and (piece.begin_row, piece.end_row) == (0, piece.tensors[piece.name].shape[0]):
        return replace(piece, end_row=None)
    return piece


def _average(shape: tuple[int, ...], read: Callable[[], Iterable[Tensor]]) -> Made:
    """Give the mean of tensors, summed in fp32, in the type of the first."""

    def make() -> Tensor:
        found = iter(read())
        first = next(found)
        total, count = first.float(), 1
        for tensor in found:
            total = total + tensor.float()
            count += 1
        return (total / count).to(first.dtype)

    return Made(make, shape, 16 * math.prod(shape), "average")
