"""The gates of a merge: routers made of prompts, or drawn.

L layers, E experts, D model width.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from moekit.convert.merging.merge_config import DRAWN_MODES, MergeConfig
from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.mergekit_arithmetic import drawn_gates, prompted_gates, runs
from moekit.convert.merging.prompts import prompt_encoder
from moekit.convert.merging.router_input_gates import router_gates, shared_gates
from moekit.core.errors import MoekitError
from moekit.models.stored_model import StoredModel, dense_of
from moekit.models.streamed_decoder import TokenBatch

_log = logging.getLogger(__name__)


def gate_problems(recipe: MergeConfig, base: StoredModel) -> list[str]:
    """Say why the gates that are asked for cannot be made of this base model."""
    problems = []
    if recipe.gate_mode not in DRAWN_MODES:
        try:
            prompt_encoder(base)
        except MoekitError as error:
            problems.append(f"base_model: gate_mode {recipe.gate_mode} needs the tokenizer of the base: {error}")
    if recipe.gate_mode.startswith("hidden") and not runs(base.config):
        problems.append(
            f"gate_mode: {recipe.gate_mode} is mergekit's, for models of Llama's shape, and {recipe.base_model} is "
            "none; take router_input, fitted, cheap_embed, or one that is drawn."
        )
    return problems


def make_gates(merged: MergedModel) -> MergedModel:
    """Make the gates that the recipe asks for; what has them already is given back."""
    if merged.routers is not None:
        return merged
    _log.info("Making gates (%s)", merged.recipe.gate_mode)
    gate_LED, gate_LSD = _gates(merged)
    values = {}
    for name in merged.router_names:
        of_layer = (gate_LED if name.endswith("router.weight") else gate_LSD)[int(name.split(".")[1])]
        values[name] = of_layer.contiguous()
    return merged.with_routers(values, f"seed {merged.seed}")


def _gates(merged: MergedModel) -> tuple[Tensor, Tensor]:
    """Make gate_LED of the routed experts, and gate_LSD of the shared ones that have a gate."""
    recipe, base = merged.recipe, merged.base
    mode, routed, layers, width = recipe.gate_mode, recipe.experts, len(base.config.layers), base.config.width
    if mode in DRAWN_MODES:
        # Those without a gate take their numbers all the same, as in mergekit.
        generator = torch.Generator().manual_seed(merged.seed)
        gate_LED = drawn_gates(mode, layers, len(recipe.all_experts), width, generator)
        return gate_LED[:, : len(routed)], gate_LED[:, len(routed) :]
    encoder = prompt_encoder(base)
    if mode in ("router_input", "fitted"):
        gated = recipe.shared_experts if merged.output.format.branch == "gated_shared" else ()
        of_shared = [shared_gates(mode, base, encoder, routed, shared) for shared in gated]
        return router_gates(mode, base, encoder, routed), torch.cat(of_shared or [torch.zeros(layers, 0, width)], 1)
    prompted = [expert for expert in recipe.all_experts if expert.positive_prompts]

    def batch(texts: Sequence[str]) -> TokenBatch:
        """Pad where mergekit pads."""
        return TokenBatch.of([encoder.ids(text) for text in texts], padding=encoder.padding, left=True)

    prompts = [batch(one.positive_prompts) for one in prompted]
    against = [batch(one.negative_prompts) if one.negative_prompts else None for one in prompted]
    gate_LED = prompted_gates(mode, base, prompts, against)
    return gate_LED[:, : len(routed)], gate_LED[:, len(routed) :]


def gates_memory_bytes(recipe: MergeConfig, base: StoredModel) -> int:
    """Estimate what making the gates takes: one block's weights in the type it computes in, activations, all gates."""
    config, experts = base.config, recipe.all_experts
    gates, mode = 4 * len(config.layers) * len(experts) * config.width, recipe.gate_mode
    if mode in DRAWN_MODES:
        return 2 * gates
    itemsize = 4 if mode in ("router_input", "fitted") else 2
    prompts = [text for expert in experts for side in expert.prompts for text in side]
    tokens = sum(len(text.encode()) for text in prompts) + len(prompts)  # at least as many as tokens
    if mode == "cheap_embed":
        return gates + 4 * tokens * config.width
    activations = 3 * tokens * max(config.width * 4, dense_of(config, 0).width * itemsize)
    block = [shape.numel() for name, shape in base.shapes.items() if name.startswith("layers.0.")]
    of_block = sum(block) * itemsize + 4 * max(block)
    fit = 8 * tokens * (config.width + min(tokens, config.width)) if mode == "fitted" else 0
    return gates + of_block + activations + fit
