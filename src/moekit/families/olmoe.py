"""OLMoE: 64 narrow experts, eight a token, weights not renormalised; queries and keys normed."""

from functools import partial
from typing import Any

from moekit.checkpoint.layout import Stored
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
    only_moe,
    read_attention,
    read_decoder,
    routed_experts,
    shared_attention,
    write_decoder,
)
from moekit.families.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01,
    **ROPE_DEFAULTS,
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of an OLMoE's settings."""
    if settings.has("clip_qkv"):
        raise settings.problem("clip_qkv", "is set, and moekit does not clip queries, keys and values")
    bias = settings.flag("attention_bias")
    attention = read_attention(settings, qkv_bias=bias, output_bias=bias, query_key_norm="all")
    layer = MoEConfig(
        experts=settings.integer("num_experts"),
        expert_width=settings.integer("intermediate_size"),
        router=SoftmaxTopKConfig(
            top_k=settings.integer("num_experts_per_tok"),
            renormalize=settings.flag("norm_topk_prob"),
            balance_loss=settings.number("router_aux_loss_coef"),
        ),
        activation=settings.choice("hidden_act", ACTIVATIONS),
    )
    return read_decoder(settings, attention, [layer] * number_of_layers(settings))


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give an OLMoE's settings."""
    layer, attention = only_moe(config), shared_attention(config)
    if layer is None or layer.branch != "none" or attention is None:
        return None
    router = dropless_softmax(layer)
    if router is None or attention.qkv_bias != attention.output_bias:
        return None
    return write_decoder(
        config,
        intermediate_size=layer.expert_width,
        num_experts=layer.experts,
        num_experts_per_tok=router.top_k,
        norm_topk_prob=router.renormalize,
        router_aux_loss_coef=router.balance_loss,
        attention_bias=attention.qkv_bias,
    )


def layout(config: ModelConfig) -> list[Stored]:
    """List OLMoE's tensors."""
    return llama_layout(config, routed_experts)


FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    read=read,
    write=write,
    layout=layout,
    other_layouts=(partial(llama_layout, moe=fused_experts),),
    defaults=DEFAULTS,
    nulls=NULLS,
    aliases={"num_local_experts": "num_experts"},
    presets={
        "olmoe-1b-7b": Preset(
            config=ModelConfig(
                vocab_size=50_304,
                width=2048,
                context=4096,
                layers=decoder_layers(
                    AttentionConfig(heads=16, kv_heads=16, head_width=128, query_key_norm="all"),
                    (MoEConfig(experts=64, expert_width=1024, router=SoftmaxTopKConfig(top_k=8, renormalize=False)),)
                    * 16,
                ),
            ),
            source="arXiv 2409.02060, table 1 and appendix B",
            parameters=6.9e9,
            active=1.3e9,
        ),
    },
)
