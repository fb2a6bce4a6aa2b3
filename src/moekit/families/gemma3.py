"""Gemma 3 (text): windows with a rope of their own between layers that see everything, norms by 1 + w, four a layer.

Gemma Team, arXiv 2503.19786. Folders of the larger models hold a vision encoder beside it, which moekit does not read.
"""

from collections.abc import Mapping
from typing import Any

from moekit.config import (
    AttentionConfig,
    DenseConfig,
    LayerConfig,
    LinearScaling,
    ModelConfig,
    NormConfig,
    RotaryConfig,
)
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.llama_like import (
    NULLS,
    llama_layout,
    number_of_layers,
    one_window,
    only_dense,
    windows_of,
    windows_of_kinds,
    write_sizes,
)
from moekit.families.parts import read_rope, write_rope
from moekit.families.settings import Settings

_EVERYWHERE, _WINDOW = "full_attention", "sliding_attention"
_EVERYWHERE_BASE, _WINDOW_BASE = 1e6, 1e4
_PERIOD = 6
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": _PERIOD,
    "layer_types": None,
    "rope_theta": _EVERYWHERE_BASE,
    "rope_local_base_freq": _WINDOW_BASE,
    "rope_parameters": None,
    "rope_scaling": None,
    "use_bidirectional_attention": False,
    **dict.fromkeys(_CAPS),
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a Gemma 3's settings."""
    for key in _CAPS:
        settings.require(key, None)
    settings.require("use_bidirectional_attention", False)
    head_width, bias = settings.integer("head_dim"), settings.flag("attention_bias")
    scaled_as = settings.number("query_pre_attn_scalar")
    if scaled_as <= 0:
        raise settings.problem("query_pre_attn_scalar", f"is {scaled_as}, and must be more than 0")
    attention = AttentionConfig(
        heads=settings.integer("num_attention_heads"),
        kv_heads=settings.integer("num_key_value_heads"),
        head_width=head_width,
        scale=None if scaled_as == head_width else scaled_as**-0.5,
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm="head",
    )
    feed_forward = DenseConfig(
        width=settings.integer("intermediate_size"),
        activation=settings.choice("hidden_activation", ACTIVATIONS),
    )
    return _gemma(
        windows=_windows(settings),
        attention=attention,
        feed_forward=feed_forward,
        ropes=(_rope(settings, _EVERYWHERE, "rope_theta"), _rope(settings, _WINDOW, "rope_local_base_freq")),
        eps=settings.number("rms_norm_eps"),
        vocab_size=settings.integer("vocab_size"),
        width=settings.integer("hidden_size"),
        context=settings.integer("max_position_embeddings"),
        tie_embeddings=settings.flag("tie_word_embeddings"),
        init_std=settings.number("initializer_range"),
    )


def _windows(settings: Settings) -> list[int | None]:
    """Read the window of each layer from `layer_types`; older files have a period instead."""
    layers, (window,) = number_of_layers(settings), one_window(settings)
    if settings.has("layer_types"):
        return windows_of_kinds(settings, window, layers)
    period = settings.integer("sliding_window_pattern")
    if period < 1:
        raise settings.problem("sliding_window_pattern", f"is {period}, and must be 1 or more")
    return _pattern(layers, settings.integer("sliding_window"), period)


def _pattern(layers: int, window: int, period: int = _PERIOD) -> list[int | None]:
    return [window if (index + 1) % period else None for index in range(layers)]


def _rope(settings: Settings, kind: str, base: str) -> RotaryConfig:
    """Read the rope of one kind of layer: an object of `rope_parameters`, and the keys of before transformers 5."""
    given = settings.inner("rope_parameters")
    of_kind = given.inner(kind) if given is not None else None
    found = {"rope_theta": settings.number(base)} | (of_kind.values if of_kind is not None else {})
    if kind == _EVERYWHERE and (older := settings.inner("rope_scaling")) is not None:
        found |= older.values
    context = {"max_position_embeddings": settings.integer("max_position_embeddings")}
    return read_rope(Settings({"rope_parameters": found} | context, settings.file))


def _gemma(
    *,
    windows: list[int | None],
    attention: AttentionConfig,
    feed_forward: DenseConfig,
    ropes: tuple[RotaryConfig, RotaryConfig],
    width: int,
    eps: float = 1e-6,
    tie_embeddings: bool = True,
    **more: Any,
) -> ModelConfig:
    """Make a decoder of Gemma 3's kind. ropes: of layers that see everything, and of those with a window."""
    norm = NormConfig(eps=eps, zero_centered=True)
    everywhere, local = (attention.model_copy(update=dict(rope)) for rope in ropes)
    layers = tuple(
        LayerConfig(
            attention=everywhere if window is None else local.model_copy(update={"window": window}),
            feed_forward=feed_forward,
            block="sandwich",
            norm=norm,
        )
        for window in windows
    )
    return ModelConfig(
        width=width, layers=layers, norm=norm, tie_embeddings=tie_embeddings, embedding_scale=width**0.5, **more
    )


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a Gemma 3's settings."""
    layer, windows = only_dense(config), windows_of(config)
    attention, sizes = config.layers[0].attention, {window for window in windows if window is not None}
    if layer is None or not isinstance(attention, AttentionConfig) or len(sizes) > 1:
        return None
    ropes = {
        "full_attention": _first_rope(config, _EVERYWHERE_BASE, windowed=False),
        "sliding_attention": _first_rope(config, _WINDOW_BASE, windowed=True),
    }
    written = {kind: write_rope(rope)["rope_parameters"] for kind, rope in ropes.items()}
    return {
        **write_sizes(config, attention),
        "query_pre_attn_scalar": _scalar(attention),
        "intermediate_size": layer.width,
        "hidden_activation": ACTIVATION_NAMES[layer.activation],
        "attention_bias": attention.qkv_bias,
        "sliding_window": sizes.pop() if sizes else 4096,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
        "rope_parameters": written,
        **_older_keys(ropes, written),
    }


def _first_rope(config: ModelConfig, base: float, *, windowed: bool) -> RotaryConfig:
    for layer in config.layers:
        if (layer.attention.window is not None) is windowed:
            return RotaryConfig(rope_base=layer.attention.rope_base, rope_scaling=layer.attention.rope_scaling)
    return RotaryConfig(rope_base=base)


def _scalar(attention: AttentionConfig) -> int:
    return attention.head_width if attention.scale is None else round(attention.scale**-2)


def _older_keys(ropes: Mapping[str, RotaryConfig], written: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Say the same for transformers before 5, which has no scaling for layers with a window."""
    keys: dict[str, Any] = {
        "rope_theta": ropes["full_attention"].rope_base,
        "rope_local_base_freq": ropes["sliding_attention"].rope_base,
    }
    if ropes["full_attention"].rope_scaling is not None:
        keys["rope_scaling"] = {key: value for key, value in written["full_attention"].items() if key != "rope_theta"}
    return keys


def _preset(
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    parameters: float,
    *,
    kv_heads: int,
    head_width: int = 256,
    scale: float | None = None,
    window: int = 1024,
    context: int = 131_072,
    vocab: int = 262_208,
    factor: float | None = 8.0,
) -> Preset:
    attention = AttentionConfig(
        heads=heads, kv_heads=kv_heads, head_width=head_width, scale=scale, query_key_norm="head"
    )
    scaling = None if factor is None else LinearScaling(factor=factor)
    config = _gemma(
        windows=_pattern(layers, window),
        attention=attention,
        feed_forward=DenseConfig(width=hidden, activation="gelu_tanh"),
        ropes=(RotaryConfig(rope_base=_EVERYWHERE_BASE, rope_scaling=scaling), RotaryConfig(rope_base=_WINDOW_BASE)),
        vocab_size=vocab,
        width=width,
        context=context,
    )
    return Preset(config=config, source=_SOURCE, parameters=parameters)


_SOURCE = "arXiv 2503.19786, table 1 and section 2, and its published config.json; the text model alone"

FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=read,
    write=write,
    layout=llama_layout,
    defaults=DEFAULTS,
    nulls={**NULLS, **dict.fromkeys(_CAPS), "use_bidirectional_attention": False},
    presets={
        "gemma-3-1b": _preset(
            26, 1152, 4, 6912, 1.0e9, kv_heads=1, window=512, context=32_768, vocab=262_144, factor=None
        ),
        "gemma-3-4b": _preset(34, 2560, 8, 10_240, 3.88e9, kv_heads=4),
        "gemma-3-12b": _preset(48, 3840, 16, 15_360, 11.77e9, kv_heads=8),
        "gemma-3-27b": _preset(62, 5376, 32, 21_504, 27.0e9, kv_heads=16, head_width=128, scale=168**-0.5),
    },
)
