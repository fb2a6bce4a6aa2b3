"""What the native decoder computes, in the very values that it is given.

`describe` takes from a configuration what the kernels consume; the decoder is made of that and of weights, never of the
configuration. `rebuild` makes a configuration of a description alone. Where it differs from the one described, the
model has something that the kernels would pass over in silence: `unsupported` finds it, whatever it is called.
"""

from dataclasses import dataclass
from typing import Literal

from moekit.config import (
    ActivationName,
    AnyAttentionConfig,
    AttentionConfig,
    Config,
    DenseConfig,
    FeedForwardConfig,
    LayerConfig,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    MoEConfig,
    NormConfig,
    RopeScaling,
    SoftmaxTopKConfig,
    YarnScaling,
)
from moekit.config.comparing import TRAINING_ONLY, differences
from moekit.kernels.native.module import available

STORED_OTHERWISE = frozenset({"tie_embeddings", "zero_centered"})
"""Fields that say how weights are stored: `DecoderWeights` has them as they are computed with."""

WIDEST_HEAD = 1024


@dataclass(frozen=True, kw_only=True)
class RopeDescription:
    """base, scaling: what the frequencies of the head_width / 2 pairs follow from."""

    head_width: int
    base: float
    scaling: RopeScaling | None


@dataclass(frozen=True, kw_only=True)
class AttentionDescription:
    """rotary: whether rope is applied; else there are no positions. scale: None for 1 / sqrt(head_width)."""

    heads: int
    kv_heads: int
    head_width: int
    rotary: bool
    rope: RopeDescription
    window: int | None
    scale: float | None
    soft_cap: float | None
    qkv_bias: bool
    output_bias: bool
    query_key_norm: Literal["none", "head", "all"]


@dataclass(frozen=True, kw_only=True)
class FfnDescription:
    """A dense ffn, or each of a layer's experts. width: of its hidden numbers."""

    width: int
    activation: ActivationName
    gated: bool


@dataclass(frozen=True, kw_only=True)
class MoeDescription:
    """Experts chosen by a softmax over router logits. shared_expert_gate: whether a gate weighs the shared expert."""

    experts: int
    top_k: int
    renormalize: bool
    expert: FfnDescription
    shared_expert: FfnDescription | None
    shared_expert_gate: bool


@dataclass(frozen=True, kw_only=True)
class LayerDescription:
    """sandwich: whether norms stand behind attention and ffn, too. norm_eps: of all norms of the layer."""

    attention: AttentionDescription | None
    ffn: FfnDescription | MoeDescription
    sandwich: bool
    norm_eps: float


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """norm_eps: of the last norm. context: the most positions of a cache."""

    vocab_size: int
    width: int
    context: int
    layers: tuple[LayerDescription, ...]
    norm_eps: float
    embedding_scale: float
    logit_scale: float


def describe(config: ModelConfig) -> ModelDescription:
    """Take from a configuration what the kernels consume, and leave out what they do not know."""
    return ModelDescription(
        vocab_size=config.vocab_size,
        width=config.width,
        context=config.context,
        layers=tuple(map(_layer, config.layers)),
        norm_eps=config.norm.eps,
        embedding_scale=config.embedding_scale,
        logit_scale=config.logit_scale,
    )


def rebuild(description: ModelDescription) -> ModelConfig:
    """Make the configuration of a model that is computed as described."""
    return ModelConfig(
        vocab_size=description.vocab_size,
        width=description.width,
        context=description.context,
        layers=tuple(map(_rebuilt_layer, description.layers)),
        norm=NormConfig(eps=description.norm_eps),
        embedding_scale=description.embedding_scale,
        logit_scale=description.logit_scale,
    )


def is_native(config: ModelConfig) -> bool:
    """Tell whether the native kernels are there and compute such a model."""
    return available() and unsupported(config) is None


def unsupported(config: ModelConfig) -> str | None:
    """Say why the native decoder cannot compute a model, in words that follow "because"; None where it can.

    The words name the first field of the configuration that the kernels do not consume, and what it says.
    """
    for index, layer in enumerate(config.layers):
        path = f"layers[{index}].attention"
        if not isinstance(layer.attention, AttentionConfig):
            return f"{path}.kind is {layer.attention.kind}"
        if layer.attention.head_width > WIDEST_HEAD:
            return f"{path}.head_width is over {WIDEST_HEAD}"
    for path, given, rebuilt in differences(config, rebuild(describe(config)), TRAINING_ONLY | STORED_OTHERWISE):
        if isinstance(given, Config) and isinstance(rebuilt, Config):
            return f"{path or 'the model'} is a {type(given).__name__}"
        return f"{path} is {given}"
    return None


def _layer(layer: LayerConfig) -> LayerDescription:
    return LayerDescription(
        attention=_attention(layer.attention),
        ffn=_ffn(layer.feed_forward),
        sandwich=layer.block == "sandwich",
        norm_eps=layer.norm.eps,
    )


def _attention(attention: AnyAttentionConfig) -> AttentionDescription | None:
    if not isinstance(attention, AttentionConfig):
        return None
    rope = RopeDescription(
        head_width=attention.head_width, base=attention.rope_base, scaling=_scaling(attention.rope_scaling)
    )
    return AttentionDescription(
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_width=attention.head_width,
        rotary=attention.positions == "rotary",
        rope=rope,
        window=attention.window,
        scale=attention.scale,
        soft_cap=attention.soft_cap,
        qkv_bias=attention.qkv_bias,
        output_bias=attention.output_bias,
        query_key_norm=attention.query_key_norm,
    )


def _scaling(scaling: RopeScaling | None) -> RopeScaling | None:
    """Take what `rotary_frequencies` consumes of a scaling."""
    match scaling:
        case None:
            return None
        case LinearScaling():
            return LinearScaling(factor=scaling.factor)
        case Llama3Scaling():
            return Llama3Scaling(factor=scaling.factor, low=scaling.low, high=scaling.high, context=scaling.context)
        case YarnScaling():
            return YarnScaling(
                factor=scaling.factor,
                context=scaling.context,
                fast=scaling.fast,
                slow=scaling.slow,
                magnitude=scaling.magnitude,
                whole_ends=scaling.whole_ends,
            )


def _ffn(layer: FeedForwardConfig) -> FfnDescription | MoeDescription:
    if isinstance(layer, DenseConfig):
        return FfnDescription(width=layer.width, activation=layer.activation, gated=layer.gated)

    def network(width: int) -> FfnDescription:
        return FfnDescription(width=width, activation=layer.activation, gated=layer.gated)

    router = layer.router
    return MoeDescription(
        experts=layer.experts,
        top_k=router.experts_per_token,
        renormalize=isinstance(router, SoftmaxTopKConfig) and router.renormalize,
        expert=network(layer.expert_width),
        shared_expert=network(layer.branch_width) if layer.branch in ("shared", "gated_shared") else None,
        shared_expert_gate=layer.branch == "gated_shared",
    )


def _rebuilt_layer(layer: LayerDescription) -> LayerConfig:
    assert layer.attention is not None
    return LayerConfig(
        attention=_rebuilt_attention(layer.attention),
        feed_forward=_rebuilt_ffn(layer.ffn),
        block="sandwich" if layer.sandwich else "pre",
        norm=NormConfig(eps=layer.norm_eps),
    )


def _rebuilt_attention(attention: AttentionDescription) -> AttentionConfig:
    return AttentionConfig(
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_width=attention.head_width,
        window=attention.window,
        scale=attention.scale,
        soft_cap=attention.soft_cap,
        qkv_bias=attention.qkv_bias,
        output_bias=attention.output_bias,
        query_key_norm=attention.query_key_norm,
        positions="rotary" if attention.rotary else "none",
        rope_base=attention.rope.base,
        rope_scaling=attention.rope.scaling,
    )


def _rebuilt_ffn(ffn: FfnDescription | MoeDescription) -> FeedForwardConfig:
    if isinstance(ffn, FfnDescription):
        return DenseConfig(width=ffn.width, activation=ffn.activation, gated=ffn.gated)
    branch: Literal["none", "shared", "gated_shared"] = "none"
    if ffn.shared_expert:
        branch = "gated_shared" if ffn.shared_expert_gate else "shared"
    return MoEConfig(
        experts=ffn.experts,
        expert_width=ffn.expert.width,
        router=SoftmaxTopKConfig(top_k=ffn.top_k, renormalize=ffn.renormalize),
        branch=branch,
        branch_width=ffn.shared_expert.width if ffn.shared_expert else 0,
        activation=ffn.expert.activation,
        gated=ffn.expert.gated,
    )
