"""Qwen 2 and 3, dense and with experts: biases of queries, keys and values in 2, norms of queries and keys in 3."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from moekit.checkpoint.layout import Stored, stored
from moekit.config import (
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
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
    SparseLayout,
    dense_layer,
    dropless_softmax,
    fused_experts,
    llama_layout,
    number_of_layers,
    only_dense,
    only_moe,
    read_attention,
    read_decoder,
    read_windows,
    routed_experts,
    shared_attention,
    windows_of,
    write_decoder,
    write_windows,
)
from moekit.families.parts import gated_network
from moekit.families.settings import Settings

Norms = Literal["none", "head"]

_NORM = NormConfig(eps=1e-6)

_DENSE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "layer_types": None,
    **ROPE_DEFAULTS,
}
_MOE: dict[str, Any] = _DENSE | {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": _DENSE | {"max_window_layers": 28},
    "qwen3": _DENSE | {"max_window_layers": 28, "head_dim": 128, "attention_bias": False},
    "qwen2_moe": _MOE
    | {
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "qkv_bias": True,
        "max_window_layers": 28,
    },
    "qwen3_moe": _MOE
    | {
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "attention_bias": False,
    },
}
_NULLS = {**NULLS, "mlp_only_layers": []}
_ALIASES = {"num_local_experts": "num_experts"}


def _attention(settings: Settings, norms: Norms) -> AttentionConfig:
    """Version 2 has biases, which mixtures may say they lack, and no norms; 3 norms, and biases where it says so."""
    if norms == "none":
        return read_attention(settings, qkv_bias=settings.flag("qkv_bias", True))
    bias = settings.flag("attention_bias")
    return read_attention(settings, qkv_bias=bias, output_bias=bias, query_key_norm="head")


def _write_attention(config: ModelConfig, norms: Norms) -> dict[str, Any] | None:
    attention = shared_attention(config)
    if attention is None or attention.query_key_norm != norms:
        return None
    if norms == "none":
        return None if attention.output_bias else {"qkv_bias": attention.qkv_bias}
    return {"attention_bias": attention.qkv_bias} if attention.qkv_bias == attention.output_bias else None


def _read_dense(settings: Settings, norms: Norms) -> ModelConfig:
    layers = [dense_layer(settings)] * number_of_layers(settings)
    first = settings.integer("max_window_layers")
    windows = read_windows(settings, lambda layer: layer >= first)
    return read_decoder(settings, _attention(settings, norms), layers, windows)


def _write_dense(config: ModelConfig, norms: Norms) -> dict[str, Any] | None:
    layer, attention = only_dense(config), _write_attention(config, norms)
    # The dense Qwen 2 knows no other way than biases.
    if layer is None or layer.bias or attention is None or attention.pop("qkv_bias", True) is False:
        return None
    return write_decoder(config, intermediate_size=layer.width, **attention, **write_windows(config))


def _read_moe(settings: Settings, norms: Norms) -> ModelConfig:
    shared = settings.integer("shared_expert_intermediate_size") if norms == "none" else 0
    sparse = MoEConfig(
        experts=settings.integer("num_experts"),
        expert_width=settings.integer("moe_intermediate_size"),
        router=SoftmaxTopKConfig(
            top_k=settings.integer("num_experts_per_tok"),
            renormalize=settings.flag("norm_topk_prob"),
            balance_loss=settings.number("router_aux_loss_coef"),
        ),
        branch="gated_shared" if shared else "none",
        branch_width=shared,
        activation=settings.choice("hidden_act", ACTIVATIONS),
    )
    step, dense_ones = settings.integer("decoder_sparse_step"), settings.values["mlp_only_layers"]
    if step < 1 or not isinstance(dense_ones, list):
        raise settings.problem("decoder_sparse_step", "must be 1 or more, and mlp_only_layers a list")
    layers: list[FeedForwardConfig] = [
        dense_layer(settings) if index in dense_ones or (index + 1) % step else sparse
        for index in range(number_of_layers(settings))
    ]
    windows = read_windows(settings, _windows_rule(settings, norms))
    return read_decoder(settings, _attention(settings, norms), layers, windows)


def _windows_rule(settings: Settings, norms: Norms) -> Callable[[int], bool]:
    """Give which layers have the window where there are no `layer_types`, which version 3 has never known."""
    if norms == "head":
        return lambda layer: True
    most = settings.integer("max_window_layers")
    return lambda layer: layer % 2 == 0 and layer < most


def _write_moe(config: ModelConfig, norms: Norms) -> dict[str, Any] | None:
    sparse, attention = only_moe(config), _write_attention(config, norms)
    if sparse is None or attention is None or sparse.branch != ("gated_shared" if norms == "none" else "none"):
        return None
    router = dropless_softmax(sparse)
    dense = {layer for layer in config.feed_forwards if isinstance(layer, DenseConfig)}
    if router is None or len(dense) > 1 or any(layer.bias for layer in dense):
        return None
    if len(set(windows_of(config))) > 1:
        return None  # transformers 4 knows no `layer_types` of mixtures
    more = {"shared_expert_intermediate_size": sparse.branch_width} if norms == "none" else {}
    return write_decoder(
        config,
        intermediate_size=dense.pop().width if dense else sparse.expert_width,
        moe_intermediate_size=sparse.expert_width,
        num_experts=sparse.experts,
        num_experts_per_tok=router.top_k,
        norm_topk_prob=router.renormalize,
        router_aux_loss_coef=router.balance_loss,
        decoder_sparse_step=1,
        mlp_only_layers=[index for index, layer in enumerate(config.feed_forwards) if isinstance(layer, DenseConfig)],
        **attention,
        **write_windows(config),
        **more,
    )


def _sparse(theirs: str, layer: MoEConfig, ours: str, *, experts: SparseLayout = routed_experts) -> Iterator[Stored]:
    yield from experts(theirs, layer, ours)
    if layer.branch == "gated_shared":
        yield from gated_network(f"{theirs}.mlp.shared_expert", layer.dense_branch, f"{ours}.branch")
        yield stored(f"{theirs}.mlp.shared_expert_gate.weight", f"{ours}.branch_gate.weight")


_moe_layout = partial(llama_layout, moe=_sparse)
_fused_layout = partial(llama_layout, moe=partial(_sparse, experts=fused_experts))


def _qwen3(
    layers: int, width: int, heads: int, kv_heads: int, feed_forward: FeedForwardConfig, *, tied: bool = False
) -> ModelConfig:
    attention = AttentionConfig(heads=heads, kv_heads=kv_heads, head_width=128, rope_base=1e6, query_key_norm="head")
    return ModelConfig(
        vocab_size=151_936,
        width=width,
        context=40_960,
        layers=decoder_layers(attention, (feed_forward,) * layers, norm=_NORM),
        norm=_NORM,
        tie_embeddings=tied,
    )


def _experts(width: int) -> MoEConfig:
    return MoEConfig(experts=128, expert_width=width, router=SoftmaxTopKConfig(top_k=8, balance_loss=0.001))


_QWEN_3 = "arXiv 2505.09388, tables 1 and 2, and its published config.json"
_QWEN_15_MOE = ModelConfig(
    vocab_size=151_936,
    width=2048,
    context=8192,
    layers=decoder_layers(
        AttentionConfig(heads=16, kv_heads=16, head_width=128, rope_base=1e6, qkv_bias=True),
        (
            MoEConfig(
                experts=60,
                expert_width=1408,
                router=SoftmaxTopKConfig(top_k=4, renormalize=False, balance_loss=0.001),
                branch="gated_shared",
                branch_width=5632,
            ),
        )
        * 24,
        norm=_NORM,
    ),
    norm=_NORM,
)

FAMILIES = (
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        read=lambda settings: _read_dense(settings, "none"),
        write=lambda config: _write_dense(config, "none"),
        layout=llama_layout,
        defaults=DEFAULTS["qwen2"],
        nulls=_NULLS,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        read=lambda settings: _read_dense(settings, "head"),
        write=lambda config: _write_dense(config, "head"),
        layout=llama_layout,
        defaults=DEFAULTS["qwen3"],
        nulls=_NULLS,
        presets={
            "qwen3-0.6b": Preset(
                config=_qwen3(28, 1024, 16, 8, DenseConfig(width=3072), tied=True), source=_QWEN_3, parameters=0.6e9
            ),
            "qwen3-8b": Preset(
                config=_qwen3(36, 4096, 32, 8, DenseConfig(width=12_288)), source=_QWEN_3, parameters=8.2e9
            ),
        },
    ),
    Family(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        read=lambda settings: _read_moe(settings, "none"),
        write=lambda config: _write_moe(config, "none"),
        layout=_moe_layout,
        other_layouts=(_fused_layout,),
        defaults=DEFAULTS["qwen2_moe"],
        nulls=_NULLS,
        aliases=_ALIASES,
        presets={
            "qwen1.5-moe-a2.7b": Preset(
                config=_QWEN_15_MOE,
                source="Qwen1.5-MoE's announcement and published config.json",
                parameters=14.3e9,
                active=2.7e9,
            ),
        },
    ),
    Family(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        read=lambda settings: _read_moe(settings, "head"),
        write=lambda config: _write_moe(config, "head"),
        layout=_moe_layout,
        other_layouts=(_fused_layout,),
        defaults=DEFAULTS["qwen3_moe"],
        nulls=_NULLS,
        aliases=_ALIASES,
        presets={
            "qwen3-30b-a3b": Preset(
                config=_qwen3(48, 2048, 32, 4, _experts(768)), source=_QWEN_3, parameters=30.5e9, active=3.3e9
            ),
            "qwen3-235b-a22b": Preset(
                config=_qwen3(94, 4096, 64, 4, _experts(1536)), source=_QWEN_3, parameters=235e9, active=22e9
            ),
        },
    ),
)
