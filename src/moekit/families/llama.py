"""Llama 2, 3, 3.1 and 3.2."""

from typing import Any

from moekit.config import AttentionConfig, DenseConfig, Llama3Scaling, ModelConfig, decoder_layers
from moekit.families.family import Family, Preset
from moekit.families.llama_like import (
    NULLS,
    ROPE_DEFAULTS,
    dense_layer,
    llama_layout,
    number_of_layers,
    only_dense,
    read_attention,
    read_decoder,
    shared_attention,
    write_decoder,
)
from moekit.families.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    **ROPE_DEFAULTS,
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a Llama's settings."""
    bias = settings.flag("attention_bias")
    attention = read_attention(settings, qkv_bias=bias, output_bias=bias)
    layer = dense_layer(settings, bias=settings.flag("mlp_bias"))
    return read_decoder(settings, attention, [layer] * number_of_layers(settings))


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a Llama's settings."""
    layer, attention = only_dense(config), shared_attention(config)
    if layer is None or attention is None or attention.qkv_bias != attention.output_bias:
        return None
    return write_decoder(config, intermediate_size=layer.width, attention_bias=attention.qkv_bias, mlp_bias=layer.bias)


def _llama(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    *,
    vocab: int = 128_256,
    context: int = 8192,
    base: float = 500_000.0,
    factor: float | None = None,
    tied: bool = False,
) -> ModelConfig:
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        rope_base=base,
        rope_scaling=Llama3Scaling(factor=factor, context=8192) if factor else None,
    )
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        context=context,
        layers=decoder_layers(attention, (DenseConfig(width=hidden),) * layers),
        tie_embeddings=tied,
    )


_LLAMA_2 = "arXiv 2307.09288, table 1 and its published params.json"
_LLAMA_3 = "arXiv 2407.21783, table 3, and its published params.json"
_LLAMA_31 = _LLAMA_3 + "; rotary scaling: its reference code"
_LLAMA_32 = "Llama 3.2's model card and published params.json"
_OLD: dict[str, Any] = {"vocab": 32_000, "context": 4096, "base": 10_000.0}
_LONG: dict[str, Any] = {"context": 131_072, "factor": 8.0}
_SMALL: dict[str, Any] = {"context": 131_072, "factor": 32.0, "tied": True}

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read=read,
    write=write,
    layout=llama_layout,
    defaults=DEFAULTS,
    nulls=NULLS,
    presets={
        "llama-2-7b": Preset(config=_llama(32, 4096, 32, 32, 11_008, **_OLD), source=_LLAMA_2, parameters=6.74e9),
        "llama-2-13b": Preset(config=_llama(40, 5120, 40, 40, 13_824, **_OLD), source=_LLAMA_2, parameters=13.0e9),
        "llama-2-70b": Preset(config=_llama(80, 8192, 64, 8, 28_672, **_OLD), source=_LLAMA_2, parameters=69.0e9),
        "llama-3-8b": Preset(config=_llama(32, 4096, 32, 8, 14_336), source=_LLAMA_3, parameters=8.03e9),
        "llama-3-70b": Preset(config=_llama(80, 8192, 64, 8, 28_672), source=_LLAMA_3, parameters=70.6e9),
        "llama-3.1-8b": Preset(config=_llama(32, 4096, 32, 8, 14_336, **_LONG), source=_LLAMA_31, parameters=8.03e9),
        "llama-3.1-70b": Preset(config=_llama(80, 8192, 64, 8, 28_672, **_LONG), source=_LLAMA_31, parameters=70.6e9),
        "llama-3.1-405b": Preset(
            config=_llama(126, 16_384, 128, 8, 53_248, **_LONG), source=_LLAMA_31, parameters=405e9
        ),
        "llama-3.2-1b": Preset(config=_llama(16, 2048, 32, 8, 8192, **_SMALL), source=_LLAMA_32, parameters=1.23e9),
        "llama-3.2-3b": Preset(config=_llama(28, 3072, 24, 8, 8192, **_SMALL), source=_LLAMA_32, parameters=3.21e9),
    },
)
