"""Mistral: Llama's layers with a sliding window; Ministral: with a window in some of them."""

from collections.abc import Sequence
from typing import Any

from moekit.config import AttentionConfig, DenseConfig, ModelConfig, decoder_layers
from moekit.families.family import Family, Preset
from moekit.families.llama_like import (
    NULLS,
    ROPE_DEFAULTS,
    dense_layer,
    llama_layout,
    number_of_layers,
    one_window,
    only_dense,
    read_attention,
    read_decoder,
    windows_of_kinds,
    write_decoder,
    write_windows,
)
from moekit.families.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "layer_types": None,
    **ROPE_DEFAULTS,
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a Mistral's settings.

    All layers have the window, unless `layer_types` is there: transformers then takes a Mistral for a Ministral.
    """
    windows: Sequence[int | None] = one_window(settings)
    if settings.has("layer_types"):
        windows = windows_of_kinds(settings, windows[0], number_of_layers(settings))
    layers = [dense_layer(settings)] * number_of_layers(settings)
    return read_decoder(settings, read_attention(settings), layers, windows)


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a Mistral's settings."""
    layer = only_dense(config)
    if layer is None:
        return None
    return write_decoder(config, intermediate_size=layer.width, sliding_window=config.layers[0].attention.window)


def write_ministral(config: ModelConfig) -> dict[str, Any] | None:
    """Give a Ministral's settings."""
    layer = only_dense(config)
    if layer is None:
        return None
    windows = write_windows(config)
    of_kinds = {key: windows.get(key) for key in ("sliding_window", "layer_types")}
    return write_decoder(config, intermediate_size=layer.width, **of_kinds)


MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    read=read,
    write=write_ministral,
    layout=llama_layout,
    defaults=DEFAULTS,
    nulls=NULLS,
)

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=read,
    write=write,
    layout=llama_layout,
    defaults=DEFAULTS,
    nulls=NULLS,
    presets={
        "mistral-7b": Preset(
            config=ModelConfig(
                vocab_size=32_000,
                width=4096,
                context=32_768,
                layers=decoder_layers(
                    AttentionConfig(heads=32, kv_heads=8, head_width=128, window=4096),
                    (DenseConfig(width=14_336),) * 32,
                ),
            ),
            source="arXiv 2310.06825, table 1, and version 0.1's published params.json",
            parameters=7.24e9,
        ),
    },
)
