"""Mixtral: every layer a mixture of experts, two of them a token."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from moekit.checkpoint.layout import Stored, stored
from moekit.config import AttentionConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig, decoder_layers
from moekit.families.activations import ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.llama_like import (
    NULLS,
    ROPE_DEFAULTS,
    dropless_softmax,
    fused_experts,
    llama_layout,
    number_of_layers,
    one_window,
    only_moe,
    read_attention,
    read_decoder,
    write_decoder,
)
from moekit.families.parts import expert_networks
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
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    **ROPE_DEFAULTS,
    "rope_theta": 1e6,
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a Mixtral's settings."""
    settings.require("router_jitter_noise", 0.0)
    layer = MoEConfig(
        experts=settings.integer("num_local_experts"),
        expert_width=settings.integer("intermediate_size"),
        router=SoftmaxTopKConfig(
            top_k=settings.integer("num_experts_per_tok"), balance_loss=settings.number("router_aux_loss_coef")
        ),
        activation=settings.choice("hidden_act", ACTIVATIONS),
    )
    layers = [layer] * number_of_layers(settings)
    return read_decoder(settings, read_attention(settings), layers, one_window(settings))


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a Mixtral's settings."""
    layer = only_moe(config)
    if layer is None or layer.branch != "none":
        return None
    router = dropless_softmax(layer)
    if router is None or not router.renormalize:
        return None
    return write_decoder(
        config,
        intermediate_size=layer.expert_width,
        num_local_experts=layer.experts,
        num_experts_per_tok=router.top_k,
        router_aux_loss_coef=router.balance_loss,
        sliding_window=config.layers[0].attention.window,
    )


def layout(config: ModelConfig) -> list[Stored]:
    """List Mixtral's tensors: Llama's, and w1 (gate), w3 (up), w2 (down) of each expert."""
    return llama_layout(config, _sparse)


def _sparse(theirs: str, layer: MoEConfig, ours: str) -> Iterator[Stored]:
    yield stored(f"{theirs}.block_sparse_moe.gate.weight", f"{ours}.router.weight")
    yield from expert_networks(f"{theirs}.block_sparse_moe.experts", layer, ours, ("w1", "w3", "w2"))


def _mixtral(layers: int, width: int, heads: int, hidden: int, vocab: int, context: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        context=context,
        layers=decoder_layers(
            AttentionConfig(heads=heads, kv_heads=8, head_width=128, rope_base=1e6),
            (MoEConfig(experts=8, expert_width=hidden, router=SoftmaxTopKConfig(top_k=2)),) * layers,
        ),
    )


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    read=read,
    write=write,
    layout=layout,
    other_layouts=(partial(llama_layout, moe=fused_experts),),
    defaults=DEFAULTS,
    nulls=NULLS,
    aliases={"num_experts": "num_local_experts"},
    presets={
        "mixtral-8x7b": Preset(
            config=_mixtral(32, 4096, 32, 14_336, 32_000, 32_768),
            source="arXiv 2401.04088, table 1",
            parameters=46.7e9,
            active=12.9e9,
        ),
        "mixtral-8x22b": Preset(
            config=_mixtral(56, 6144, 48, 16_384, 32_768, 65_536),
            source="Mixtral 8x22B's published params.json (version 0.3)",
            parameters=140.6e9,
            active=39.2e9,
        ),
    },
)
