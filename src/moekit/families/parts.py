"""Pieces that the layouts and settings of several families share.

Names of stored tensors are those of the folder; names of ours are those of moekit.models.Decoder.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moekit.checkpoint.layout import Stored, View, stored, whole
from moekit.config import (
    AttentionConfig,
    DenseConfig,
    LinearScaling,
    Llama3Scaling,
    MoEConfig,
    RopeScaling,
    RotaryConfig,
    YarnScaling,
)
from moekit.families.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


def rows(begin: int, end: int) -> View:
    """Make the view of rows begin to end."""
    return lambda tensor: tensor[begin:end]


def of_expert(expert: int, begin: int | None = None, end: int | None = None) -> View:
    """Make the view of one expert's matrix, or of some of its rows."""
    return lambda tensor: tensor[expert, begin:end]


def transposed(tensor: "Tensor") -> "Tensor":
    """View a matrix that is stored the other way round."""
    return tensor.t()


def both(theirs: str, ours: str, *, bias: bool, of_ours: View = whole) -> Iterator[Stored]:
    """List a weight, and its bias where there is one; `theirs` and `ours` without the last part of the name."""
    yield stored(f"{theirs}.weight", f"{ours}.weight", of_ours)
    if bias:
        yield stored(f"{theirs}.bias", f"{ours}.bias", of_ours)


def separate_projections(
    theirs: str, attention: AttentionConfig, ours: str, output: str = "o_proj"
) -> Iterator[Stored]:
    """List queries, keys and values as a tensor each (q_proj, k_proj, v_proj), and the output's matrix."""
    queries = attention.heads * attention.head_width
    keys = attention.kv_heads * attention.head_width
    places = {
        "q_proj": (0, queries),
        "k_proj": (queries, queries + keys),
        "v_proj": (queries + keys, queries + 2 * keys),
    }
    for name, (begin, end) in places.items():
        yield from both(
            f"{theirs}.{name}", f"{ours}.query_key_value", bias=attention.qkv_bias, of_ours=rows(begin, end)
        )
    yield from both(f"{theirs}.{output}", f"{ours}.output", bias=attention.output_bias)
    if attention.query_key_norm != "none":
        yield stored(f"{theirs}.q_norm.weight", f"{ours}.query_norm.weight")
        yield stored(f"{theirs}.k_norm.weight", f"{ours}.key_norm.weight")


def gated_network(theirs: str, config: DenseConfig, ours: str) -> Iterator[Stored]:
    """List gate_proj, up_proj and down_proj."""
    yield from both(f"{theirs}.gate_proj", f"{ours}.gate_up", bias=config.bias, of_ours=rows(0, config.width))
    yield from both(
        f"{theirs}.up_proj", f"{ours}.gate_up", bias=config.bias, of_ours=rows(config.width, 2 * config.width)
    )
    yield from both(f"{theirs}.down_proj", f"{ours}.down", bias=config.bias)


def expert_networks(
    theirs: str, config: MoEConfig, ours: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Iterator[Stored]:
    """List a tensor for each expert's gate, up and down."""
    width = config.expert_width
    gate, up, down = names
    for expert in range(config.experts):
        prefix = f"{theirs}.{expert}"
        yield stored(f"{prefix}.{gate}.weight", f"{ours}.experts.gate_up_EGD", of_expert(expert, 0, width))
        yield stored(f"{prefix}.{up}.weight", f"{ours}.experts.gate_up_EGD", of_expert(expert, width, 2 * width))
        yield stored(f"{prefix}.{down}.weight", f"{ours}.experts.down_EDF", of_expert(expert))


def read_rope(settings: Settings) -> RotaryConfig:
    """Read base and scaling from `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    given = given_rope(settings)
    base = given.number("rope_theta") if given.has("rope_theta") else settings.number("rope_theta")
    given.require("partial_rotary_factor", 1.0)
    settings.require("partial_rotary_factor", 1.0)
    kind = given.text("rope_type", given.text("type", "default"))
    return RotaryConfig(rope_base=base, rope_scaling=_scaling(kind, given, settings))


def given_rope(settings: Settings) -> Settings:
    """Find the object that tells of rotary positions; of two that say something, transformers 5 takes the older."""
    older = settings.inner("rope_scaling")
    return (
        older
        if older is not None and older.values
        else settings.inner("rope_parameters") or Settings({}, settings.file)
    )


def _scaling(kind: str, given: Settings, settings: Settings) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise settings.problem("rope_type", f"is {kind!r}, and moekit has default, linear, llama3 and yarn")
    if kind == "linear":
        factor = given.number("factor")
        return LinearScaling(factor=factor) if factor != 1 else None
    context = _pretrained_context(given, settings)
    by_context = kind == "yarn" and "factor" in given.values  # and null
    factor = given.number("factor", settings.integer("max_position_embeddings") / context if by_context else None)
    if kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        return Llama3Scaling(factor=factor, low=low, high=high, context=context)
    return YarnScaling(
        factor=factor,
        context=context,
        fast=given.number("beta_fast", 32.0),
        slow=given.number("beta_slow", 1.0),
        magnitude=_yarn_magnitude(given, factor),
        whole_ends=given.flag("truncate", "truncate" not in given.values),
    )


def _pretrained_context(given: Settings, settings: Settings) -> int:
    """Read how long the texts of the pretraining were: beside the object that tells of rope, in it, or as now."""
    key = "original_max_position_embeddings"
    context = settings.integer(key, given.integer(key, settings.integer("max_position_embeddings")))
    if context < 1:
        raise settings.problem(key, f"is {context}, and must be 1 or more")
    return context


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """Compute 0.1 · mscale · ln(factor) + 1 (arXiv 2309.00071, eq. 22), 1 where nothing is scaled."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_magnitude(given: Settings, factor: float) -> float | None:
    if given.has("attention_factor"):
        return given.number("attention_factor")
    if given.number("mscale", 0.0) and given.number("mscale_all_dim", 0.0):
        both_scales = given.number("mscale"), given.number("mscale_all_dim")
        return yarn_magnitude(factor, both_scales[0]) / yarn_magnitude(factor, both_scales[1])
    return None


def write_rope(config: RotaryConfig, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the same twice: `rope_parameters` for transformers 5, `rope_theta` and `rope_scaling` for 4.

    more: what a family says of a scaling beside what all do.
    """
    scaled: dict[str, Any] = {"rope_type": "default"}
    match config.rope_scaling:
        case LinearScaling() as scaling:
            scaled = {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling() as scaling:
            scaled = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.context,
            }
        case YarnScaling() as scaling:
            scaled = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.fast,
                "beta_slow": scaling.slow,
                "original_max_position_embeddings": scaling.context,
                "truncate": scaling.whole_ends,
            }
            if scaling.magnitude is not None:
                scaled["attention_factor"] = scaling.magnitude
    scaled |= more or {}
    return {
        "rope_parameters": {"rope_theta": config.rope_base, **scaled},
        "rope_theta": config.rope_base,
        "rope_scaling": scaled if config.rope_scaling is not None else None,
    }
