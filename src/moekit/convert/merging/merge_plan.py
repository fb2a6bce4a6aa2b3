"""A merge that can be written: every tensor of the result, as pieces of the models' tensors or computed from them.

L layers, E experts, S shared experts, D model width, N rows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from moekit.checkpoint.read_weights import memory_of
from moekit.config import ModelConfig
from moekit.convert.merging.gates import PromptEncoder, drawn_gates, prompt_encoder, prompted_gates
from moekit.convert.merging.merge_config import DRAWN_MODES, MergeConfig
from moekit.convert.merging.mergekit_noise import Draw, Noise
from moekit.convert.merging.output_formats import FUSED_DOWN, FUSED_GATE_UP, Output, merged_config, noise_order
from moekit.convert.merging.router_input_gates import router_gates, shared_gates
from moekit.convert.merging.source_models import NETWORK, Source, network_name
from moekit.convert.storage.streaming_writer import Made, OutputTensor, Piece


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge that can be written: the models are there, fit each other and the output.

    experts, shared: a source for each of config's. dtype: of the result; None: each tensor keeps its own.
    """

    config: MergeConfig
    output: Output
    base: Source
    experts: tuple[Source, ...]
    shared: tuple[Source, ...]
    dtype: torch.dtype | None
    seed: int
    fused: bool
    settings: dict[str, Any]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.base.config.layers)

    @cached_property
    def encoder(self) -> PromptEncoder:
        """For prompts."""
        return prompt_encoder(self.base)

    @cached_property
    def gates(self) -> tuple[Tensor, Tensor]:
        """gate_LED of the routed experts, and gate_LSD of the shared ones that have a gate; computed when asked for."""
        mode, routed = self.config.gate_mode, self.config.experts
        if mode in DRAWN_MODES:
            count = len(self.config.all_experts)  # those without a gate take their numbers all the same, as in mergekit
            gate_LED = drawn_gates(mode, self.layers, count, self.base.config.width, self._generator())
            return gate_LED[:, : len(routed)], gate_LED[:, len(routed) :]
        if mode in ("router_input", "fitted"):
            gate_LED = router_gates(mode, self.base, self.encoder, routed)
            gated = self.config.shared_experts if self.output.shared_gate else ()
            return gate_LED, torch.cat(
                [shared_gates(mode, self.base, self.encoder, routed, shared) for shared in gated]
                or [gate_LED.new_zeros(self.layers, 0, self.base.config.width)],
                1,
            )
        prompted = [expert for expert in self.config.all_experts if expert.positive_prompts]
        gate_LED = prompted_gates(mode, self.base, self.encoder, prompted)
        return gate_LED[:, : len(routed)], gate_LED[:, len(routed) :]

    @cached_property
    def noise(self) -> Noise:
        """The noise of all experts that have a scale for it."""
        generator = self._generator()
        if self.config.gate_mode in DRAWN_MODES:
            shape = self.layers, len(self.config.all_experts), self.base.config.width
            drawn_gates(self.config.gate_mode, *shape, generator)
        routed, shared = range(len(self.experts)), range(len(self.experts), len(self._sources))
        draws = []
        for layer, expert, part in noise_order(self.output, self.layers, routed, shared):
            if self.config.all_experts[expert].noise_scale is not None:
                info = self._sources[expert].tensors[network_name(layer, part)]
                draws.append(Draw((layer, expert, part), info.shape, info.dtype))
        return Noise(generator, draws)

    @cached_property
    def tensors(self) -> tuple[OutputTensor, ...]:
        """All that is written, in its order."""
        return tuple(self._tensors())

    @cached_property
    def by_name(self) -> Mapping[str, OutputTensor]:
        """The same by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def model_config(self) -> ModelConfig:
        """Our configuration of the result."""
        return merged_config(self.output, self.config, self.base)

    def network_piece(self, layer: int, expert: int, part: str) -> Piece:
        """A matrix of an expert (the shared ones follow the routed), with its noise and its scale."""
        source, asked = self._sources[expert], self.config.all_experts[expert]
        piece = source.piece(network_name(layer, part))
        scaled = part == "down_proj" and asked.residual_scale is not None
        if asked.noise_scale is None and not scaled:
            return piece
        info = source.tensors[network_name(layer, part)]
        memory = 3 * info.size + (piece.memory_bytes if isinstance(piece, Made) else 0)
        key = f"noise {asked.noise_scale} seed {self.seed} scale {asked.residual_scale}"
        return Made(lambda: self._changed(layer, expert, part), info.shape, memory, key)

    def matrix(self, layer: int, expert: int, part: str) -> Tensor:
        """That matrix as the result holds it, whatever the output calls it."""
        return materialized(self._written("", [self.network_piece(layer, expert, part)]))

    def read(self, name: str) -> Tensor:
        """A tensor of the result."""
        return materialized(self.by_name[name])

    def rows(self, name: str, row_N: Sequence[int]) -> Tensor:
        """Some rows of a tensor of the backbone."""
        rows = [source.rows(name, row_N) for source in self._backbone]
        return _mean(rows).to(self.by_name[name].dtype)

    def with_routers(self, routers: Mapping[str, Tensor], key: str) -> "Merge":
        """The same merge with other values in these tensors (of routers and gates); `key` tells them apart."""
        merge = replace(self)
        changed = [
            replace(tensor, pieces=(_given(routers[tensor.name], key),)) if tensor.name in routers else tensor
            for tensor in self.tensors
        ]
        # What is known stays known: gates cost a pass through the base model.
        merge.__dict__.update(self.__dict__ | {"tensors": tuple(changed)})
        merge.__dict__.pop("by_name", None)
        return merge

    def unfused(self) -> "Merge":
        """The same merge with a tensor for each matrix of each expert."""
        return replace(self, fused=False)

    @property
    def router_names(self) -> tuple[str, ...]:
        """The tensors that are routers, or gates of shared experts."""
        names = [self.output.of_router(layer, fused=self.fused) for layer in range(self.layers)]
        if self.output.shared_gate:
            names += [f"model.layers.{layer}.{self.output.shared_gate}" for layer in range(self.layers)]
        return tuple(names)

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (*self.experts, *self.shared)

    @property
    def _backbone(self) -> tuple[Source, ...]:
        return self.experts if self.config.backbone == "average" else (self.base,)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _changed(self, layer: int, expert: int, part: str) -> Tensor:
        asked = self.config.all_experts[expert]
        matrix = self._sources[expert].read(network_name(layer, part))
        if asked.noise_scale is not None:
            matrix = matrix + self.noise.of((layer, expert, part)) * asked.noise_scale
        if part == "down_proj" and asked.residual_scale is not None:
            matrix = matrix * asked.residual_scale
        return matrix

    def _tensors(self) -> Iterator[OutputTensor]:
        layer = 0
        for name in self.base.names:
            if ".mlp." not in name:
                yield self._written(name, [self._backbone_piece(name)])
            elif name == network_name(layer, "gate_proj"):
                yield from self._zero_biases(layer)
                yield from self._layer(layer)
                layer += 1

    def _layer(self, layer: int) -> Iterator[OutputTensor]:
        routed = len(self.experts)
        yield self._gate(self.output.of_router(layer, fused=self.fused), layer, shared=False)
        if self.fused:
            prefix = f"model.layers.{layer}"
            both = (
                [("gate_proj", expert) for expert in range(routed)],
                [("up_proj", expert) for expert in range(routed)],
            )
            pieces = [
                self.network_piece(layer, expert, part) for pair in zip(*both, strict=True) for part, expert in pair
            ]
            rows, columns = pieces[0].shape
            yield self._written(f"{prefix}.{FUSED_GATE_UP}", pieces, (routed, 2 * rows, columns))
            pieces = [self.network_piece(layer, expert, "down_proj") for expert in range(routed)]
            yield self._written(f"{prefix}.{FUSED_DOWN}", pieces, (routed, columns, rows))
        else:
            for expert in range(routed):
                for part in NETWORK:
                    name = self.output.expert(layer, expert, part)
                    yield self._written(name, [self.network_piece(layer, expert, part)])
        for expert in range(routed, len(self._sources)):
            for part in NETWORK:
                yield self._written(self.output.of_shared(layer, part), [self.network_piece(layer, expert, part)])
        if self.output.shared_gate:
            yield self._gate(f"model.layers.{layer}.{self.output.shared_gate}", layer, shared=True)

    def _zero_biases(self, layer: int) -> Iterator[OutputTensor]:
        """Biases that the output's readers want and the base has not."""
        for name in self._missing(layer):
            weight = self._written("", [self._backbone_piece(name.replace(".bias", ".weight"))])
            size = weight.shape[:1]
            yield OutputTensor(name, weight.dtype, size, (_zeros(size, weight.dtype),))

    def _missing(self, layer: int) -> list[str]:
        if not self.output.shared_gate or self.base.attention.qkv_bias:
            return []
        return [f"model.layers.{layer}.self_attn.{part}_proj.bias" for part in "qkv"]

    def _gate(self, name: str, layer: int, *, shared: bool) -> OutputTensor:
        width, count = self.base.config.width, len(self.shared if shared else self.experts)
        in_half = self.config.gate_mode.startswith("hidden")
        dtype = self.dtype or (torch.bfloat16 if in_half else torch.float32)
        piece = Made(lambda: self.gates[shared][layer], (count, width), self._gate_bytes(), f"seed {self.seed}")
        return OutputTensor(name, dtype, (count, width), (piece,))

    def _gate_bytes(self) -> int:
        """What computing the gates takes at its peak: one block's weights in the type it computes in, and all gates."""
        width, experts = self.base.config.width, len(self.config.all_experts)
        gates = 4 * self.layers * experts * width
        mode = self.config.gate_mode
        if mode in DRAWN_MODES:
            return 2 * gates
        itemsize = 4 if mode in ("router_input", "fitted") else 2
        prompts = [text for expert in self.config.all_experts for side in expert.prompts for text in side]
        tokens = sum(len(text.encode()) for text in prompts) + len(prompts)  # at least as many as tokens
        activations = 0 if mode == "cheap_embed" else 3 * tokens * max(width * 4, self.base.layer.width * itemsize)
        block = sum(
            math.prod(self.base.tensors[name].shape) for name in self.base.names if name.startswith("model.layers.0.")
        )
        largest = max(self.base.tensors[network_name(0, part)].size for part in NETWORK)
        of_block = 0 if mode == "cheap_embed" else block * itemsize + largest
        fit = 8 * tokens * (width + min(tokens, width)) if mode == "fitted" else 0
        return gates + of_block + activations + fit

    def _backbone_piece(self, name: str) -> Piece:
        sources = self._backbone
        if len(sources) == 1:
            return sources[0].piece(name)
        info = sources[0].tensors[name]
        elements = math.prod(info.shape)
        made = [source.piece(name) for source in sources]
        memory = (
            4 * elements + info.size + max(one.memory_bytes if isinstance(one, Made) else 4 * elements for one in made)
        )
        return Made(lambda: _mean(source.read(name) for source in sources), info.shape, memory, "average")

    def _written(self, name: str, pieces: Sequence[Piece], shape: tuple[int, ...] | None = None) -> OutputTensor:
        dtype = self.dtype or self._dtype_of(pieces[0], name)
        return OutputTensor(name, dtype, shape or pieces[0].shape, tuple(pieces))

    def _dtype_of(self, piece: Piece, name: str) -> torch.dtype:
        if not isinstance(piece, Made):
            return piece.tensors[piece.name].dtype
        known = self.base.tensors.get(name) or self.base.tensors[network_name(0, "gate_proj")]
        return known.dtype


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    """Their mean, summed in fp32, in the type of the first; one alone stays as it is."""
    found = iter(tensors)
    first = next(found)
    total, count = None, 1
    for tensor in found:
        total = first.float() if total is None else total
        total += tensor.float()
        count += 1
    return first if total is None else (total / count).to(first.dtype)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Made:
    return Made(lambda: torch.zeros(shape, dtype=dtype), shape, math.prod(shape) * dtype.itemsize, "zeros")


def _given(tensor: Tensor, key: str) -> Made:
    return Made(lambda: tensor, tuple(tensor.shape), tensor.nbytes, key)


def materialized(tensor: OutputTensor) -> Tensor:
    """An output tensor in memory."""
    parts = []
    for piece in tensor.pieces:
        if isinstance(piece, Made):
            part = piece.make()
        else:
            info = piece.tensors[piece.name]
            part = torch.empty(piece.shape, dtype=info.dtype)
            row = math.prod(info.shape[1:]) * info.dtype.itemsize
            piece.tensors.read(piece.name, piece.begin_row * row, memory_of(part))
        parts.append(part.to(tensor.dtype))
    return parts[0].reshape(tensor.shape) if len(parts) == 1 else torch.cat(parts).reshape(tensor.shape)
