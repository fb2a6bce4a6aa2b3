"""Decoding with contestants' plans at a size that no cache holds.

A comparison trains models that live in a processor's cache, where what a token costs is not what it costs in a model
that people serve: that one is read from memory for every token. So each plan is grown in its proportions, to random
weights of about DENSE_BYTES in the baseline's active layers, and its routers choose as often as the trained ones did.

V vocabulary, D model width, E experts, K experts per token.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from moekit.comparison.results_schema import Run, ServedSize
from moekit.comparison.run.serving.decode_turns import FEWEST_ROUNDS, GivenTurns, Turns, in_turns
from moekit.comparison.run.serving.drawn_routing import draw_choices, shares_of
from moekit.comparison.run.serving.random_weights import (
    Arena,
    arena_bytes,
    expected_logits,
    random_embedding,
    random_weights,
)
from moekit.comparison.run.serving.scaled_config import Growth, growth_to, scaled
from moekit.comparison.run.serving.trained_models import decode_with
from moekit.config import ModelConfig, MoEConfig
from moekit.counting import count_parameters
from moekit.doctor import read_bandwidth
from moekit.inference.native_runner import NativeRunner
from moekit.kernels import native
from moekit.kernels.native.decoder_description import unsupported
from moekit.kernels.packed import BF16, BlockType, Numbers

DENSE_BYTES = 1e9
# Below this, the weights of the smallest model might stay in a large processor's cache.
LEAST_BYTES = 256e6
# Of what is free, the most that the weights may take: the machine is somebody's.
_MEMORY_SHARE = 0.5
# Of the time there is, what the fewest rounds may take to read weights: the rest is for filling memory and contexts.
_TIME_SHARE = 0.5
_CONTEXT, _TOKENS, _ROUNDS = 512, 8, 10
# How far logits may be, relatively, from those of a model whose layers add nothing: routing is then as drawn.
_CLOSE = 0.05

Loads = Mapping[int, Sequence[float]]
"""Each expert's share of the assignments, by layer."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """How large the models are to be: bytes of the baseline's active layers, and the least that say something.

    memory: the most bytes that the largest model may take.
    """

    kind: BlockType = BF16
    dense_bytes: float = DENSE_BYTES
    least_bytes: float = LEAST_BYTES
    memory: float
    context: int = _CONTEXT


@dataclass(frozen=True, kw_only=True)
class MeasuredSizes:
    """What was measured, and why what was not was not."""

    sizes: dict[str, ServedSize]
    left_out: dict[str, str]


def usual_aim() -> Aim:
    """Aim at what a comparison measures, in the memory that this machine has to spare."""
    return Aim(memory=_MEMORY_SHARE * psutil.virtual_memory().available)


def trained_loads(runs: Sequence[Run]) -> dict[int, list[float]]:
    """Give the loads of a contestant's layers on held-out text, a mean over domains and finished runs."""
    found: dict[int, list[list[float]]] = {}
    for run in runs:
        for table in run.experts_by_domain:
            found.setdefault(table.layer, []).extend(table.share)
    return {layer: np.mean(shares, axis=0).tolist() for layer, shares in found.items()}


def even_loads(config: ModelConfig) -> dict[int, list[float]]:
    """Give loads under which each expert of a layer gets as much as any other."""
    return {index: [1 / part.experts] * part.experts for index, part in _routed(config).items()}


def measure_sizes(
    configs: Mapping[str, ModelConfig], baseline: str, loads: Mapping[str, Loads], aim: Aim, seconds: float
) -> MeasuredSizes:
    """Measure how fast grown contestants decode, one sequence at a time, in turns.

    Args:
        configs: the contestants' plans, by name.
        baseline: the one whose active layers become as large as `aim` says; the first of those that the native engine
            computes where it is not among them.
        loads: of each contestant's layers that have experts; a contestant without is not measured.
        aim: how large.
        seconds: that it may take; models are smaller where this machine is too slow for what `aim` says.
    """
    began = time.monotonic()
    left_out = {name: reason for name, config in configs.items() if (reason := _why_not(config, loads.get(name)))}
    usable = {name: config for name, config in configs.items() if name not in left_out}
    if not usable:
        return MeasuredSizes(sizes={}, left_out=left_out)
    growth = _growth(usable.get(baseline, next(iter(usable.values()))), list(usable.values()), aim, seconds)
    if growth is None:
        reason = f"there is no room, or no time, for {aim.least_bytes / 1e6:.0f} MB of weights a token"
        return MeasuredSizes(sizes={}, left_out=left_out | dict.fromkeys(usable, reason))
    grown = {name: scaled(config, growth, aim.context + _TOKENS + 1) for name, config in usable.items()}
    arena = Arena(aim.kind, max(arena_bytes(config, aim.kind) for config in grown.values()))
    models: dict[str, _Grown] = {}
    for name, config in grown.items():
        arena.restart()
        depth = len(usable[name].layers)
        # Layers are repeated as a whole plan, and so are their loads.
        wanted = {index: loads[name][index % depth] for index in _routed(config)}
        model = _Grown(config, arena, wanted, aim.context)
        if model.strays():
            left_out[name] = "what its layers add would change which experts are chosen"
        else:
            models[name] = model
    times = in_turns(
        {name: model.turn for name, model in models.items()},
        tokens=_TOKENS,
        rounds=_ROUNDS,
        seconds=seconds - (time.monotonic() - began),
    )
    return MeasuredSizes(sizes={name: model.measured(times[name]) for name, model in models.items()}, left_out=left_out)


def _routed(config: ModelConfig) -> dict[int, MoEConfig]:
    """Give the feed-forward parts that have experts, by layer."""
    return {index: part for index, part in enumerate(config.feed_forwards) if isinstance(part, MoEConfig)}


def _why_not(config: ModelConfig, loads: Loads | None) -> str | None:
    """Say why a contestant cannot be measured grown, in words; gives None where it can."""
    if not native.available():
        return "the native engine is not built here"
    if reason := unsupported(config):
        return f"the native engine does not compute it, because {reason}"
    if (_routed(config).keys()) - (loads or {}).keys():
        return "no run tells how its experts are chosen"
    return None


def _growth(baseline: ModelConfig, configs: Sequence[ModelConfig], aim: Aim, seconds: float) -> Growth | None:
    """Find the largest growth up to the aim that memory and time have room for; None where none has."""
    tokens = FEWEST_ROUNDS * (_TOKENS + 1)
    readable = _TIME_SHARE * seconds * read_bandwidth()
    wanted = aim.dense_bytes
    while wanted >= aim.least_bytes:
        growth = growth_to(baseline, wanted * 8 / aim.kind.bits)
        grown = [scaled(config, growth, aim.context) for config in configs]
        fits = max(arena_bytes(config, aim.kind) for config in grown) <= aim.memory
        if fits and tokens * sum(_bytes_read(config, aim.kind) for config in grown) <= readable:
            return growth
        wanted *= 0.8
    return None


def _bytes_read(config: ModelConfig, kind: BlockType) -> float:
    """Count the bytes of weights that a token reads, of an embedding next to nothing."""
    counted = count_parameters(config)
    return (counted.active - counted.by_part["embedding"]) * kind.bits / 8


class _Grown:
    """A grown contestant in memory, which has seen its context.

    wanted: the loads of its layers that have experts.
    """

    def __init__(self, config: ModelConfig, arena: Arena, wanted: Loads, context: int) -> None:
        random = np.random.default_rng(0)
        self.config, self.wanted, self.context = config, wanted, context
        self.embedding_VD = random_embedding(config, random)
        # As many tokens as a router can tell apart with room to spare.
        tokens = min(config.vocab_size, config.width // 2)
        self.choices = {
            index: draw_choices(wanted[index], part.router.experts_per_token, tokens, random)
            for index, part in _routed(config).items()
        }
        self.weights = random_weights(config, arena, self.embedding_VD, self.choices)
        self.runner = NativeRunner(config, self.weights)
        self.order = random.permutation(tokens).tolist()
        self.turn = GivenTurns(self.runner, random.integers(0, tokens, context).tolist(), self.order)

    def strays(self) -> bool:
        """Tell whether what layers add moves the last norm's input, and so any router's, off a token's embedding."""
        token = self.order[0]
        expected_V = self.config.logit_scale * expected_logits(self.weights, self.embedding_VD[token])
        found_V: Numbers = self.runner.decode([self.turn.cache], [token])[0]
        return bool(np.linalg.norm(found_V - expected_V) > _CLOSE * np.linalg.norm(expected_V))

    def measured(self, turns: Turns) -> ServedSize:
        """Give the record of this model and the times of its tokens."""
        counted = count_parameters(self.config)
        errors = [
            float(np.abs(shares_of(self.choices[index], part.experts) - np.asarray(self.wanted[index])).max())
            for index, part in _routed(self.config).items()
        ]
        return ServedSize(
            config=self.config,
            params_total=counted.total,
            params_active=counted.active,
            load_error=max(errors, default=None),
            decode=decode_with(self.runner, self.context).model_copy(update=vars(turns)),
        )
