"""The architectures of GGUF files that moekit knows, as data: what their metadata says of a configuration, and back.

Keys and what they leave unsaid (whether the weights of the chosen experts are renormalised, how rotary positions pair a
head's rows) are those of llama.cpp's loader and graphs (src/models/*.cpp).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moekit.checkpoint.gguf import Metadata
from moekit.config import (
    MAX_LAYERS,
    ActivationName,
    AttentionConfig,
    BlockName,
    DenseConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    RotaryConfig,
    SoftmaxTopKConfig,
)
from moekit.families.gguf.key_defaults import get_or_default
from moekit.families.gguf.rope_metadata import read_rope


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What an architecture leaves unsaid in its files.

    Attributes:
        interleaved: rotary positions rotate the pairs (2i, 2i + 1) of a head's rows, and queries and keys are stored
            so.
        experts: whether its layers may have, must have, or cannot have experts.
        renormalize: whether the chosen experts' weights are renormalised.
        biases: whether attention's matrices have biases; `any` where files may have them or not.
        expert_width_key: the key of the experts' hidden width.
        scaled_embedding: whether embeddings are multiplied by the square root of the model's width.
        window_period: every layer of that number, the sixth say, sees everything, where files do not say another; the
            rope of the others has a base of its own, `window_rope_base`. None means that all layers have the window.
        wide_scale_layers: with that many layers scores are scaled by 1 / sqrt(width / heads), not by the heads' own
            width.
    """

    name: str
    interleaved: bool = False
    experts: Literal["never", "maybe", "always"] = "never"
    renormalize: bool = True
    gated_branch: bool = False
    query_key_norm: Literal["none", "head", "all"] = "none"
    biases: Literal["none", "qkv", "any"] = "none"
    expert_width_key: str = "feed_forward_length"
    block: BlockName = "pre"
    activation: ActivationName = "silu"
    scaled_embedding: bool = False
    window_period: int | None = None
    window_rope_base: float = 10_000.0
    wide_scale_layers: int | None = None


ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(name="llama", interleaved=True, experts="maybe", biases="any"),
        Architecture(name="qwen2", biases="qkv"),
        Architecture(name="qwen3", query_key_norm="head"),
        Architecture(
            name="qwen2moe",
            experts="always",
            renormalize=False,
            gated_branch=True,
            biases="qkv",
            expert_width_key="expert_feed_forward_length",
        ),
        Architecture(
            name="qwen3moe", experts="always", query_key_norm="head", expert_width_key="expert_feed_forward_length"
        ),
        Architecture(name="olmoe", experts="always", renormalize=False, query_key_norm="all"),
        Architecture(
            name="gemma3",
            query_key_norm="head",
            block="sandwich",
            activation="gelu_tanh",
            scaled_embedding=True,
            window_period=6,
            wide_scale_layers=62,
        ),
    )
}
"""By name; the first that can say a configuration is the one it is written as."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file says by its tensors.

    Attributes:
        shapes: their shapes by name.
        rope_factors: the numbers of that tensor, where there is one.
    """

    shapes: Mapping[str, Sequence[int]]
    rope_factors: Sequence[float] | None = None


def architecture_of(metadata: Metadata) -> Architecture:
    """Find the architecture that the file names; raises MoekitError where moekit has not that one."""
    name = metadata.get_as(str, "general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise metadata.problem("general.architecture", f"is {name!r}, which moekit does not read; it reads {known}")
    return ARCHITECTURES[name]


_NOT_COMPUTED = (
    "expert_weights_scale",
    "attention.clamp_kqv",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_log_multiplier",
)
"""Keys that change what is computed, by what other architectures have and these have not."""


def read_config(metadata: Metadata, contents: Contents) -> ModelConfig:
    """Read our configuration of a file; raises MoekitError where it is not supported or contradicts itself."""
    architecture = architecture_of(metadata)
    prefix = architecture.name
    for key in _NOT_COMPUTED:
        if metadata.get(f"{prefix}.{key}") not in (None, 0.0, 1.0):
            raise metadata.problem(f"{prefix}.{key}", "is set, which moekit does not compute in this architecture")
    if metadata.get(f"{prefix}.expert_weights_norm", architecture.renormalize) != architecture.renormalize:
        raise metadata.problem(f"{prefix}.expert_weights_norm", "is not what this architecture does")
    layers = metadata.get_as(int, f"{prefix}.block_count")
    if not 0 < layers <= MAX_LAYERS:
        raise metadata.problem(f"{prefix}.block_count", f"is {layers}, and must lie between 1 and {MAX_LAYERS:,}")
    embedding = contents.shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise metadata.problem(
            "token_embd.weight", "is missing or no matrix; there is no other place for the vocabulary"
        )
    width = _width(metadata, prefix)
    try:
        norm = NormConfig(eps=_eps(metadata, prefix))
        feed_forward = _feed_forward(metadata, architecture, contents)
        return ModelConfig(
            vocab_size=embedding[0],
            width=width,
            context=metadata.get_as(int, f"{prefix}.context_length"),
            layers=tuple(
                LayerConfig(attention=attention, feed_forward=feed_forward, block=architecture.block, norm=norm)
                for attention in _attentions(metadata, architecture, contents, layers)
            ),
            norm=norm,
            tie_embeddings="output.weight" not in contents.shapes,
            embedding_scale=width**0.5 if architecture.scaled_embedding else 1.0,
        )
    except ValueError as error:  # pydantic's: values contradict each other or lie out of bounds
        problem = str(error).splitlines()
        raise metadata.problem("its metadata", f"describes no model ({' '.join(problem[1:3]).strip()})") from error


def _width(metadata: Metadata, prefix: str) -> int:
    return metadata.get_as(int, f"{prefix}.embedding_length")


def _in_all_layers(metadata: Metadata, key: str, default: int | None = None) -> int:
    """Read a number that a file may give for each layer, if it is the same in all."""
    found = metadata.get(key)
    if not isinstance(found, np.ndarray):
        return metadata.get_as(int, key, default)
    if not len(found) or (found != found[0]).any() or found[0] != int(found[0]):
        raise metadata.problem(key, "differs between layers, which moekit does not read in this architecture")
    return int(found[0])


def _eps(metadata: Metadata, prefix: str) -> float:
    # Four bytes of the file: 1e-5 reads 9.99999974e-06, which as a double would be another number.
    return float(f"{metadata.get_as(float, f'{prefix}.attention.layer_norm_rms_epsilon'):.7g}")


def _attentions(
    metadata: Metadata, architecture: Architecture, contents: Contents, layers: int
) -> list[AttentionConfig]:
    """Read the attention of each layer: those with a window may have another rope than those that see everything."""
    prefix = architecture.name
    heads, width = _in_all_layers(metadata, f"{prefix}.attention.head_count"), _width(metadata, prefix)
    usual = width // max(heads, 1)
    head_width = metadata.get_as(int, f"{prefix}.attention.key_length", usual)
    if metadata.get_as(int, f"{prefix}.attention.value_length", usual) != head_width:
        raise metadata.problem(f"{prefix}.attention.value_length", f"differs from the length of keys ({head_width})")
    context = metadata.get_as(int, f"{prefix}.context_length")
    rope = read_rope(metadata, prefix, head_width, context, contents.rope_factors)
    everywhere = AttentionConfig(
        heads=heads,
        kv_heads=_in_all_layers(metadata, f"{prefix}.attention.head_count_kv", heads),
        head_width=head_width,
        rope_base=rope.rope_base,
        rope_scaling=rope.rope_scaling,
        scale=(width / heads) ** -0.5 if layers == architecture.wide_scale_layers else None,
        qkv_bias="blk.0.attn_q.bias" in contents.shapes,
        output_bias="blk.0.attn_output.bias" in contents.shapes,
        query_key_norm=architecture.query_key_norm,
    )
    window = get_or_default(metadata, int, prefix, "attention.sliding_window")
    if not window:
        return [everywhere] * layers
    if architecture.window_period is None:
        return [everywhere.model_copy(update={"window": window})] * layers
    period = metadata.get_as(int, f"{prefix}.attention.sliding_window_pattern", architecture.window_period)
    base = metadata.get_as(float, f"{prefix}.rope.freq_base_swa", architecture.window_rope_base)
    local = everywhere.model_copy(update={"window": window, **dict(RotaryConfig(rope_base=base))})
    # With a period of 0 no layer sees everything.
    return [local if not period or (index + 1) % period else everywhere for index in range(layers)]


def _feed_forward(metadata: Metadata, architecture: Architecture, contents: Contents) -> FeedForwardConfig:
    prefix = architecture.name
    experts = get_or_default(metadata, int, prefix, "expert_count")
    if (experts > 0 and architecture.experts == "never") or (experts == 0 and architecture.experts == "always"):
        raise metadata.problem(f"{prefix}.expert_count", f"is {experts}, which this architecture cannot have")
    if not experts:
        width = _in_all_layers(metadata, f"{prefix}.feed_forward_length")
        bias = "blk.0.ffn_down.bias" in contents.shapes
        return DenseConfig(width=width, activation=architecture.activation, bias=bias)
    top_k = metadata.get_as(int, f"{prefix}.expert_used_count")
    branch = _branch_width(metadata, architecture, contents)
    return MoEConfig(
        experts=experts,
        expert_width=_expert_width(metadata, architecture, contents),
        router=SoftmaxTopKConfig(top_k=top_k, renormalize=architecture.renormalize),
        branch="gated_shared" if branch else "none",
        branch_width=branch,
        activation=architecture.activation,
    )


def _expert_width(metadata: Metadata, architecture: Architecture, contents: Contents) -> int:
    """Read the width from the tensor, where files of before the key was there have it only there."""
    stacked = contents.shapes.get("blk.0.ffn_gate_exps.weight")
    width = stacked[1] if stacked is not None and len(stacked) == 3 else None
    return metadata.get_as(int, f"{architecture.name}.{architecture.expert_width_key}", width)


def _branch_width(metadata: Metadata, architecture: Architecture, contents: Contents) -> int:
    if not architecture.gated_branch:
        return 0
    shape = contents.shapes.get("blk.0.ffn_gate_shexp.weight")
    width = shape[0] if shape is not None and len(shape) == 2 else None
    return metadata.get_as(int, f"{architecture.name}.expert_shared_feed_forward_length", width)
