"""A merged model: what its mixtures are made of, and everything that decides it.

L layers, E experts, D model width, F feed-forward width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.config import ModelConfig
from moekit.convert.expert_channels import ROUTERS, Matrix, Mixture, Slot
from moekit.convert.merging.merge_config import DRAWN_MODES, MergeConfig
from moekit.convert.merging.mergekit_arithmetic import Draw, Noise, drawn_gates, noise_order
from moekit.convert.merging.output_formats import Output
from moekit.convert.mixture_model import MixtureModel
from moekit.convert.storage.output_tensors import Copy, OutputTensor, Piece
from moekit.models.stored_model import StoredModel, dense_of, shapes_of


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
    def model(self) -> MixtureModel:
        """The result, its parameters read or computed when they are asked for."""
        shapes, layout = shapes_of(self.output.family, self.config, int(self.fused))
        # A copy of tied embeddings goes along where the base model's folder has one.
        kept = [entry for entry in layout if not entry.optional or entry.name in self.base.tensors]
        return MixtureModel(
            base=self.base,
            config=self.config,
            shapes=shapes,
            layout=sorted(kept, key=self._place),
            mixtures={layer: self._mixture(layer) for layer in range(len(self.config.layers))},
            averaged=self.experts[: len(self.recipe.experts)] if self.recipe.backbone == "average" else (),
            dtype_of_all=self.dtype_of_all,
        )

    @cached_property
    def tensors(self) -> list[OutputTensor]:
        """All that is written, in its order."""
        return [replace(one, pieces=tuple(map(_without_end, one.pieces))) for one in self.model.tensors]

    @cached_property
    def router_names(self) -> Mapping[str, str]:
        """The parameters that are routers, or gates of shared experts, and their names in the result's folder."""
        ours = {entry.parts[0].ours: entry.name for entry in self.model.layout}
        return {name: stored for name, stored in ours.items() if name.endswith(ROUTERS)}

    def with_routers(self, routers: Mapping[str, Tensor], key: str) -> "MergedModel":
        """Give the same model with these routers; `key` tells them from others."""
        return replace(self, routers=dict(routers), routers_key=key)

    def _place(self, entry: Stored) -> tuple[int, int]:
        """Sort layers, and in each what the base has not (biases) behind its attention.

        Version 0.1.0 wrote them in this order; runs that it began go on.
        """
        ours = entry.parts[0].ours
        layer = int(ours.split(".")[1]) if ours.startswith("layers.") else -1
        behind = 2 if ".feed_forward." in ours else int(ours not in self.base.shapes)
        return layer, behind

    def _mixture(self, layer: int) -> Mixture:
        slots, routed = [self._slot(layer, expert) for expert in range(len(self.experts))], len(self.recipe.experts)
        return Mixture(
            experts=tuple(slots[:routed]),
            branch=slots[routed] if len(slots) > routed else None,
            routers={role: partial(self._router, f"layers.{layer}.feed_forward.{role}") for role in ROUTERS},
            router_key=self.routers_key or f"seed {self.seed}",
            router_dtype=torch.bfloat16 if self.recipe.gate_mode.startswith("hidden") else torch.float32,
        )

    def _router(self, name: str) -> Tensor:
        assert self.routers is not None, "the gates are made before their values are needed"
        return self.routers[name]

    def _slot(self, layer: int, expert: int) -> Slot:
        """Give an expert: a model's network whole, with the noise and the scale that are asked for."""
        source, asked = self.experts[expert], self.recipe.all_experts[expert]
        noise, scale = asked.noise_scale, asked.residual_scale
        wanted: dict[Matrix, tuple[float | None, float | None]] = {
            "gate": (noise, None),
            "up": (noise, None),
            "down": (noise, scale),
            "down bias": (None, scale),
        }
        return _WholeNetwork(
            source=source,
            layer=layer,
            channels=range(dense_of(source.config, layer).width),
            changes={
                matrix: partial(self._changed, (layer, expert, matrix), *changes)
                for matrix, changes in wanted.items()
                if changes != (None, None)
            },
            key=f"noise {noise} seed {self.seed} scale {scale}",
        )

    def _changed(
        self, key: tuple[int, int, Matrix], noise: float | None, scale: float | None, values_CD: Tensor
    ) -> Tensor:
        """Add noise and multiply, each in the numbers' own type, as mergekit does."""
        if noise is not None:
            drawn = self._noise.of(key)
            values_CD = values_CD + (drawn.t() if key[2] == "down" else drawn) * noise
        return values_CD if scale is None else values_CD * scale

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


class _WholeNetwork(Slot):
    """An expert of a merge."""

    def made_key(self, matrix: Matrix, name: str) -> str:
        """Tell what is made of it as version 0.1.0 did, so that runs that it began go on."""
        return self.key


def _without_end(piece: Piece) -> Piece:
    """Say of a whole tensor no end: runs that version 0.1.0 began compare what pieces say."""
    if isinstance(piece, Copy) and (piece.begin_row, piece.end_row) == (0, piece.tensors[piece.name].shape[0]):
        return replace(piece, end_row=None)
    return piece
