"""The first DeepSeek-MoE: Llama's attention, narrow experts beside a shared one, the first layers dense.

Dai et al., arXiv 2401.06066, section 3. Its code came with its folders; transformers has none of its own.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from moekit.checkpoint.layout import Stored
from moekit.config import (
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    LinearScaling,
    ModelConfig,
    MoEConfig,
    NormConfig,
    SoftmaxTopKConfig,
    decoder_layers,
)
from moekit.families.activations import ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.llama_like import (
    NULLS,
    ROPE_DEFAULTS,
    dense_layer,
    dropless_softmax,
    llama_layout,
    number_of_layers,
    only_moe,
    read_attention,
    read_decoder,
    routed_experts,
    shared_attention,
    write_decoder,
)
from moekit.families.parts import gated_network
from moekit.families.settings import Settings

_CODE = "deepseek-ai/deepseek-moe-16b-base--"
AUTO_MAP = {
    "AutoConfig": f"{_CODE}configuration_deepseek.DeepseekConfig",
    "AutoModel": f"{_CODE}modeling_deepseek.DeepseekModel",
    "AutoModelForCausalLM": f"{_CODE}modeling_deepseek.DeepseekForCausalLM",
}
"""Where transformers finds the code that reads it, if its user lets that run. moekit only writes this down."""

# Those of its code; the experts it has no number for.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 102_400,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "n_shared_experts": 0,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "aux_loss_alpha": 0.001,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    **ROPE_DEFAULTS,
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a DeepSeek-MoE's settings.

    A single expert a token weighs 1 where weights are renormalised, as in vLLM and as a merge means it; DeepSeek's
    own code then leaves it its probability.
    """
    settings.require("scoring_func", "softmax")
    width = settings.integer("moe_intermediate_size")
    shared = settings.integer("n_shared_experts")
    sparse = MoEConfig(
        experts=settings.integer("n_routed_experts"),
        expert_width=width,
        router=SoftmaxTopKConfig(
            top_k=settings.integer("num_experts_per_tok"),
            renormalize=settings.flag("norm_topk_prob"),
            balance_loss=settings.number("aux_loss_alpha"),
        ),
        branch="shared" if shared else "none",
        branch_width=shared * width,
        activation=settings.choice("hidden_act", ACTIVATIONS),
    )
    first, step = settings.integer("first_k_dense_replace"), settings.integer("moe_layer_freq")
    if step < 1:
        raise settings.problem("moe_layer_freq", f"is {step}, and must be 1 or more")
    layers: list[FeedForwardConfig] = [
        sparse if _is_sparse(index, first, step) else dense_layer(settings)
        for index in range(number_of_layers(settings))
    ]
    bias = settings.flag("attention_bias")
    return read_decoder(settings, read_attention(settings, qkv_bias=bias, output_bias=bias), layers)


def _is_sparse(layer: int, first: int, step: int) -> bool:
    return layer >= first and layer % step == 0


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a DeepSeek-MoE's settings. Without a shared expert transformers can read the model as something else."""
    sparse, attention = only_moe(config), _write_attention(config)
    if sparse is None or attention is None or sparse.branch != "shared" or sparse.branch_width % sparse.expert_width:
        return None
    router, places = dropless_softmax(sparse), _places(config)
    dense = {layer for layer in config.feed_forwards if isinstance(layer, DenseConfig)}
    if router is None or places is None or len(dense) > 1 or any(layer.bias for layer in dense):
        return None
    settings = write_decoder(
        config,
        intermediate_size=dense.pop().width if dense else sparse.expert_width,
        moe_intermediate_size=sparse.expert_width,
        n_routed_experts=sparse.experts,
        n_shared_experts=sparse.branch_width // sparse.expert_width,
        num_experts_per_tok=router.top_k,
        norm_topk_prob=router.renormalize,
        scoring_func="softmax",
        aux_loss_alpha=router.balance_loss,
        first_k_dense_replace=places[0],
        moe_layer_freq=places[1],
        auto_map=AUTO_MAP,
        **attention,
    )
    if settings is not None:
        del settings["rope_parameters"]  # younger than its code, which would not look there
    return settings


def _write_attention(config: ModelConfig) -> dict[str, Any] | None:
    """None where it is not Llama's at the usual head width, which its code takes for granted."""
    attention = shared_attention(config)
    if attention is None or attention.head_width * attention.heads != config.width:
        return None
    scaling, written = attention.rope_scaling, None
    if isinstance(scaling, LinearScaling):
        written = {"type": "linear", "factor": scaling.factor}
    elif scaling is not None:
        return None
    if attention.qkv_bias != attention.output_bias:
        return None
    return {"attention_bias": attention.qkv_bias, "rope_scaling": written}


def _places(config: ModelConfig) -> tuple[int, int] | None:
    """Find first_k_dense_replace and moe_layer_freq; None where the sparse layers do not stand like that."""
    sparse = [isinstance(layer, MoEConfig) for layer in config.feed_forwards]
    first, count = sparse.index(True), len(sparse)
    for step in range(1, count + 1):
        if sparse == [_is_sparse(index, first, step) for index in range(count)]:
            return first, step
    return None


def _sparse(theirs: str, layer: MoEConfig, ours: str) -> Iterator[Stored]:
    yield from routed_experts(theirs, layer, ours)
    if layer.branch == "shared":
        yield from gated_network(f"{theirs}.mlp.shared_experts", layer.dense_branch, f"{ours}.branch")


_NORM = NormConfig(eps=1e-6)
_SPARSE = MoEConfig(
    experts=64,
    expert_width=1408,
    router=SoftmaxTopKConfig(top_k=6, renormalize=False, balance_loss=0.001),
    branch="shared",
    branch_width=2 * 1408,
)

FAMILY = Family(
    model_type="deepseek",
    architecture="DeepseekForCausalLM",
    read=read,
    write=write,
    layout=partial(llama_layout, moe=_sparse),
    defaults=DEFAULTS,
    nulls=NULLS | {"n_shared_experts": 0},
    presets={
        "deepseek-moe-16b": Preset(
            config=ModelConfig(
                vocab_size=102_400,
                width=2048,
                context=4096,
                layers=decoder_layers(
                    AttentionConfig(heads=16, kv_heads=16, head_width=128),
                    (DenseConfig(width=10_944),) + (_SPARSE,) * 27,
                    norm=_NORM,
                ),
                norm=_NORM,
            ),
            source="arXiv 2401.06066, section 5.1, and its published config.json",
            parameters=16.4e9,
            active=2.8e9,
        ),
    },
)
