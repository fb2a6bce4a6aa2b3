"""Families that are Llama with a few differences: what their settings and tensors have in common."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from moekit.checkpoint.layout import Stored, stored
from moekit.config import (
    AnyAttentionConfig,
    AttentionConfig,
    BlockName,
    DenseConfig,
    FeedForwardConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    SoftmaxTopKConfig,
    decoder_layers,
)
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.parts import expert_networks, gated_network, read_rope, separate_projections, write_rope
from moekit.families.settings import Settings

SparseLayout = Callable[[str, MoEConfig, str], Iterator[Stored]]
"""Gives the tensors of a sparse layer: (theirs, config, ours), named from the layer on."""

ROPE_DEFAULTS: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "rope_parameters": None,
    "rope_scaling": None,
    "original_max_position_embeddings": None,
}
"""What the keys of rotary positions are where config.json lacks them."""

NULLS: dict[str, Any] = dict.fromkeys(
    (
        "num_key_value_heads",
        "head_dim",
        "rope_parameters",
        "rope_scaling",
        "original_max_position_embeddings",
        "sliding_window",
        "layer_types",
    )
)
"""The keys that may be null: what follows from others, and what a model may be without."""


def read_attention(
    settings: Settings,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    query_key_norm: Literal["none", "head", "all"] = "none",
) -> AttentionConfig:
    """Read heads and rope; the caller knows the rest."""
    heads = settings.integer("num_attention_heads")
    rope = read_rope(settings)
    return AttentionConfig(
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_width=settings.integer("head_dim", settings.integer("hidden_size") // max(heads, 1)),
        rope_base=rope.rope_base,
        rope_scaling=rope.rope_scaling,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        query_key_norm=query_key_norm,
    )


def read_windows(settings: Settings, has_window: Callable[[int], bool]) -> list[int | None]:
    """Read the window of each layer, where `use_sliding_window` says that there are windows.

    has_window: tells from a layer's index whether the family gives it one where there are no `layer_types`.
    """
    layers = number_of_layers(settings)
    window = settings.integer("sliding_window") if settings.has("sliding_window") else None
    if not settings.flag("use_sliding_window"):
        window = None
    kinds = settings.values["layer_types"]
    if kinds is None:
        return [window if has_window(index) else None for index in range(layers)]
    return windows_of_kinds(settings, window, layers)


def windows_of_kinds(settings: Settings, window: int | None, layers: int) -> list[int | None]:
    """Read the window of each layer from `layer_types`, which is there; None for a window that nothing says."""
    choices = {"full_attention": None, "sliding_attention": window}
    kinds = settings.values["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in choices for kind in kinds):
        raise settings.problem("layer_types", f"must say {' or '.join(choices)} for each of the {layers} layers")
    if window is None and "sliding_attention" in kinds:
        raise settings.problem("layer_types", "gives layers a window, and sliding_window none")
    return [choices[kind] for kind in kinds]


def one_window(settings: Settings) -> tuple[int | None]:
    """Read the window that all layers have."""
    return (settings.integer("sliding_window") if settings.has("sliding_window") else None,)


def read_decoder(
    settings: Settings,
    attention: AnyAttentionConfig,
    feed_forwards: Sequence[FeedForwardConfig],
    windows: Sequence[int | None] = (None,),
    **more: Any,
) -> ModelConfig:
    """Read the whole, given the attention of all layers, their feed-forward parts, and windows, which are repeated."""
    norm = NormConfig(eps=settings.number("rms_norm_eps"))
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        width=settings.integer("hidden_size"),
        context=settings.integer("max_position_embeddings"),
        layers=decoder_layers(attention, feed_forwards, windows=windows, norm=norm),
        norm=norm,
        tie_embeddings=settings.flag("tie_word_embeddings"),
        init_std=settings.number("initializer_range"),
        **more,
    )


def number_of_layers(settings: Settings) -> int:
    """Read how many layers there are, bounded so that a hostile file cannot make us build for ever."""
    layers = settings.integer("num_hidden_layers")
    if not 0 < layers <= 10_000:
        raise settings.problem("num_hidden_layers", f"is {layers}, and must lie between 1 and 10,000")
    return layers


def dense_layer(settings: Settings, width_key: str = "intermediate_size", *, bias: bool = False) -> DenseConfig:
    """Read a gated network."""
    return DenseConfig(
        width=settings.integer(width_key),
        activation=settings.choice("hidden_act", ACTIVATIONS),
        bias=bias,
    )


def write_decoder(config: ModelConfig, **more: Any) -> dict[str, Any] | None:
    """Give the settings that all of these families have; None where one of them cannot hold what the layers have.

    What else the family cannot say shows when what was written is read again (`catalogue.describe`).
    """
    attention = shared_attention(config)
    activations = {part.activation for part in config.feed_forwards}
    if attention is None or len(activations) > 1:
        return None
    return {
        **write_sizes(config, attention),
        "hidden_act": ACTIVATION_NAMES[activations.pop()],
        **write_rope(attention),
        **more,
    }


def write_sizes(config: ModelConfig, attention: AttentionConfig) -> dict[str, Any]:
    """Give the settings of the whole model and of heads, which have the same keys in all of these families."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "max_position_embeddings": config.context,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_width,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm.eps,
        "initializer_range": config.init_std,
    }


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """Give `sliding_window` and `layer_types`; nothing where no layer has a window."""
    windows = windows_of(config)
    sizes = {window for window in windows if window is not None}
    if not sizes:
        return {"sliding_window": None, "use_sliding_window": False}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {"sliding_window": max(sizes), "use_sliding_window": True, "layer_types": kinds, "max_window_layers": 0}


def shared_attention(config: ModelConfig) -> AttentionConfig | None:
    """Give the grouped attention of all layers, without its window; None where layers differ or have another kind."""
    first = config.layers[0].attention
    if not isinstance(first, AttentionConfig):
        return None
    for layer in config.layers:
        if layer.attention.model_copy(update={"window": first.window}) != first:
            return None
    return first.model_copy(update={"window": None})


def windows_of(config: ModelConfig) -> list[int | None]:
    """Give the window of each layer."""
    return [layer.attention.window for layer in config.layers]


def only_dense(config: ModelConfig) -> DenseConfig | None:
    """Give the one dense network that every layer is; None where layers differ or are mixtures."""
    first = config.feed_forwards[0]
    return first if isinstance(first, DenseConfig) and set(config.feed_forwards) == {first} else None


def only_moe(config: ModelConfig) -> MoEConfig | None:
    """Give the one mixture that every sparse layer is; None where they differ or there is none."""
    kinds = {layer for layer in config.feed_forwards if isinstance(layer, MoEConfig)}
    return kinds.pop() if len(kinds) == 1 else None


def dropless_softmax(config: MoEConfig) -> SoftmaxTopKConfig | None:
    """Give the router, where it is a plain softmax over the top k without a capacity."""
    router = config.router
    return router if isinstance(router, SoftmaxTopKConfig) and router.capacity_factor is None else None


_NORMS: dict[BlockName, dict[str, str]] = {
    "pre": {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"},
    "sandwich": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_after_norm",
        "pre_feedforward_layernorm": "feed_forward_norm",
        "post_feedforward_layernorm": "feed_forward_after_norm",
    },
}
"""The norms of a layer as folders name them, with ours, by the form of the block."""


def llama_layout(config: ModelConfig, moe: SparseLayout | None = None) -> list[Stored]:
    """List Llama's tensors, with those that `moe` gives for a sparse layer."""
    return list(_llama_layout(config, moe))


def _llama_layout(config: ModelConfig, moe: SparseLayout | None) -> Iterator[Stored]:
    yield from embeddings_and_norm(config)
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.attention, AttentionConfig)
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        for their_name, our_name in _NORMS[layer.block].items():
            yield stored(f"{theirs}.{their_name}.weight", f"{ours}.{our_name}.weight")
        yield from separate_projections(f"{theirs}.self_attn", layer.attention, f"{ours}.attention")
        if isinstance(layer.feed_forward, DenseConfig):
            yield from gated_network(f"{theirs}.mlp", layer.feed_forward, f"{ours}.feed_forward")
        else:
            assert moe is not None
            yield from moe(theirs, layer.feed_forward, f"{ours}.feed_forward")


def embeddings_and_norm(config: ModelConfig) -> Iterator[Stored]:
    """List what stands before and after the layers. Files of tied models may hold the head as a copy, or not."""
    yield stored("model.embed_tokens.weight", "embedding.weight")
    yield stored("model.norm.weight", "norm.weight")
    head = stored("lm_head.weight", "embedding.weight" if config.tie_embeddings else "head.weight")
    yield Stored(name=head.name, parts=head.parts, optional=config.tie_embeddings)


def routed_experts(theirs: str, config: MoEConfig, ours: str) -> Iterator[Stored]:
    """List router and experts as Qwen and OLMoE name them."""
    yield stored(f"{theirs}.mlp.gate.weight", f"{ours}.router.weight")
    yield from expert_networks(f"{theirs}.mlp.experts", config, ours)


def fused_experts(theirs: str, config: MoEConfig, ours: str) -> Iterator[Stored]:
    """List router and experts as transformers 5 has them in memory, in all families the same.

    gate_up_proj is (E, 2 F, D), gates over ups; down_proj is (E, D, F).
    """
    yield stored(f"{theirs}.mlp.gate.weight", f"{ours}.router.weight")
    yield stored(f"{theirs}.mlp.experts.gate_up_proj", f"{ours}.experts.gate_up_EGD")
    yield stored(f"{theirs}.mlp.experts.down_proj", f"{ours}.experts.down_EDF")
