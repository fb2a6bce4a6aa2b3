"""DeepSeek-V3: latent attention, a shared expert, sigmoid scores with a balancing bias, the first layers dense."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from moekit.checkpoint.layout import Part, Stored, View, stored
from moekit.config import (
    DenseConfig,
    FeedForwardConfig,
    LatentAttentionConfig,
    ModelConfig,
    MoEConfig,
    NormConfig,
    SigmoidBiasConfig,
    YarnScaling,
    decoder_layers,
)
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.llama_like import (
    NULLS,
    ROPE_DEFAULTS,
    SparseLayout,
    dense_layer,
    embeddings_and_norm,
    fused_experts,
    number_of_layers,
    only_moe,
    read_decoder,
    routed_experts,
)
from moekit.families.parts import both, gated_network, given_rope, read_rope, write_rope, yarn_magnitude
from moekit.families.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 129_280,
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": None,  # 128, which it does not look at: latent attention has one a head
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_interleave": True,
    "attention_bias": False,
    **ROPE_DEFAULTS,
}
# What the model's own code reads and transformers takes for granted.
_ONE_WAY = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a DeepSeek-V3's settings. Modules that predict further tokens are not part of it."""
    if not settings.flag("rope_interleave"):
        raise settings.problem("rope_interleave", "is false, and moekit reads heads whose rotary pairs are neighbours")
    for key, value in _ONE_WAY.items():
        settings.require(key, value)
    experts, shared = settings.integer("n_routed_experts"), settings.integer("n_shared_experts")
    width = settings.integer("moe_intermediate_size")
    sparse = MoEConfig(
        experts=experts,
        expert_width=width,
        router=SigmoidBiasConfig(
            top_k=settings.integer("num_experts_per_tok"),
            renormalize=settings.flag("norm_topk_prob"),
            groups=settings.integer("n_group"),
            top_groups=settings.integer("topk_group"),
            scale=settings.number("routed_scaling_factor"),
        ),
        branch="shared" if shared else "none",
        branch_width=shared * width,
        activation=settings.choice("hidden_act", ACTIVATIONS),
    )
    dense = settings.integer("first_k_dense_replace")
    layers: list[FeedForwardConfig] = [
        dense_layer(settings) if index < dense else sparse for index in range(number_of_layers(settings))
    ]
    return read_decoder(settings, _attention(settings), layers)


def _attention(settings: Settings) -> LatentAttentionConfig:
    rope = read_rope(settings)
    head_width, rotary_width = settings.integer("qk_nope_head_dim"), settings.integer("qk_rope_head_dim")
    heads = settings.integer("num_attention_heads")
    kv_heads = settings.integer("num_key_value_heads", heads)
    if heads != kv_heads:
        raise settings.problem("num_key_value_heads", f"is {kv_heads}, and latent attention has one a head ({heads})")
    given = given_rope(settings)
    scale = None
    if isinstance(rope.rope_scaling, YarnScaling) and given.number("mscale_all_dim", 0.0):
        magnitude = yarn_magnitude(rope.rope_scaling.factor, given.number("mscale_all_dim"))
        scale = magnitude**2 / math.sqrt(head_width + rotary_width)
    return LatentAttentionConfig(
        heads=heads,
        head_width=head_width,
        rotary_width=rotary_width,
        value_width=settings.integer("v_head_dim"),
        kv_rank=settings.integer("kv_lora_rank"),
        query_rank=settings.integer("q_lora_rank") if settings.has("q_lora_rank") else None,
        bias=settings.flag("attention_bias"),
        rope_base=rope.rope_base,
        rope_scaling=rope.rope_scaling,
        scale=scale,
    )


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a DeepSeek-V3's settings."""
    attention, sparse = config.layers[0].attention, only_moe(config)
    if not isinstance(attention, LatentAttentionConfig) or sparse is None or sparse.branch != "shared":
        return None
    router, shared = sparse.router, sparse.branch_width // sparse.expert_width
    if not isinstance(router, SigmoidBiasConfig) or router.capacity_factor is not None:
        return None
    dense = [layer for layer in config.feed_forwards if isinstance(layer, DenseConfig)]
    if len(set(dense)) > 1 or list(config.feed_forwards[: len(dense)]) != dense:
        return None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "max_position_embeddings": config.context,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "qk_nope_head_dim": attention.head_width,
        "qk_rope_head_dim": attention.rotary_width,
        "v_head_dim": attention.value_width,
        "kv_lora_rank": attention.kv_rank,
        "q_lora_rank": attention.query_rank,
        "attention_bias": attention.bias,
        "rope_interleave": True,
        "hidden_act": ACTIVATION_NAMES[sparse.activation],
        "intermediate_size": dense[0].width if dense else sparse.expert_width,
        "first_k_dense_replace": len(dense),
        "moe_intermediate_size": sparse.expert_width,
        "n_routed_experts": sparse.experts,
        "n_shared_experts": shared,
        "num_experts_per_tok": router.top_k,
        "norm_topk_prob": router.renormalize,
        "n_group": router.groups,
        "topk_group": router.top_groups,
        "routed_scaling_factor": router.scale,
        "num_nextn_predict_layers": 0,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm.eps,
        "initializer_range": config.init_std,
        **write_rope(attention, _scale_as_yarn(attention)),
    }


def _scale_as_yarn(attention: LatentAttentionConfig) -> dict[str, float]:
    """Give the scale of the scores in YaRN's settings, where transformers reads it from."""
    if attention.scale is None or not isinstance(attention.rope_scaling, YarnScaling):
        return {}
    magnitude = math.sqrt(attention.scale * math.sqrt(attention.head_width + attention.rotary_width))
    return {"mscale_all_dim": round((magnitude - 1) / (0.1 * math.log(attention.rope_scaling.factor)), 9)}


def layout(config: ModelConfig, experts: SparseLayout = routed_experts) -> list[Stored]:
    """DeepSeek-V3's tensors; `experts` gives those of a sparse layer's router and routed experts."""
    return [*embeddings_and_norm(config), *_layers(config, experts)]


def _layers(config: ModelConfig, experts: SparseLayout) -> Iterator[Stored]:
    for index, (attention, layer) in enumerate((layer.attention, layer.feed_forward) for layer in config.layers):
        assert isinstance(attention, LatentAttentionConfig)
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        yield stored(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
        yield stored(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feed_forward_norm.weight")
        yield from _attention_tensors(f"{theirs}.self_attn", attention, f"{ours}.attention", config.width)
        if isinstance(layer, DenseConfig):
            yield from gated_network(f"{theirs}.mlp", layer, f"{ours}.feed_forward")
            continue
        yield from experts(theirs, layer, f"{ours}.feed_forward")
        yield stored(f"{theirs}.mlp.gate.e_score_correction_bias", f"{ours}.feed_forward.router.bias_E")
        if layer.branch == "shared":
            yield from gated_network(f"{theirs}.mlp.shared_experts", layer.dense_branch, f"{ours}.feed_forward.branch")


def _attention_tensors(theirs: str, attention: LatentAttentionConfig, ours: str, width: int) -> Iterator[Stored]:
    heads, plain, rotated = attention.heads, attention.head_width, attention.rotary_width
    if attention.query_rank is None:
        yield _interleaved(f"{theirs}.q_proj.weight", f"{ours}.query.weight", heads, plain, rotated, width)
    else:
        rank = attention.query_rank
        yield from both(f"{theirs}.q_a_proj", f"{ours}.query_down", bias=attention.bias)
        yield stored(f"{theirs}.q_a_layernorm.weight", f"{ours}.query_norm.weight")
        yield _interleaved(f"{theirs}.q_b_proj.weight", f"{ours}.query_up.weight", heads, plain, rotated, rank)
    names = f"{theirs}.kv_a_proj_with_mqa", f"{ours}.latent_down"
    yield _interleaved(f"{names[0]}.weight", f"{names[1]}.weight", 1, attention.kv_rank, rotated, width)
    if attention.bias:
        yield _interleaved(f"{names[0]}.bias", f"{names[1]}.bias", 1, attention.kv_rank, rotated, None)
    yield stored(f"{theirs}.kv_a_layernorm.weight", f"{ours}.latent_norm.weight")
    yield stored(f"{theirs}.kv_b_proj.weight", f"{ours}.latent_up.weight")
    yield from both(f"{theirs}.o_proj", f"{ours}.output", bias=attention.bias)


def _interleaved(theirs: str, ours: str, heads: int, plain: int, rotated: int, width: int | None) -> Stored:
    """Map a matrix of queries or keys whose rotary pairs stand side by side in the file and half a head apart with us.

    Of each head `plain` rows are as they are, then come `turned` rows in pairs. width: None for a bias.
    """
    inner = () if width is None else (width,)

    def first(tensor: Tensor) -> Tensor:
        return tensor.view(heads, plain + rotated, *inner)[:, :plain]

    def pairs(*shape: int, swap: bool) -> View:
        def view(tensor: Tensor) -> Tensor:
            last = tensor.view(heads, plain + rotated, *inner)[:, plain:].view(heads, *shape, *inner)
            return last.transpose(1, 2) if swap else last

        return view

    return Stored(
        name=theirs,
        shape=(heads * (plain + rotated), *inner),
        parts=(
            Part(ours=ours, of_ours=first, of_stored=first),
            Part(ours=ours, of_ours=pairs(2, rotated // 2, swap=False), of_stored=pairs(rotated // 2, 2, swap=True)),
        ),
    )


_NORM = NormConfig(eps=1e-6)
_SPARSE = MoEConfig(
    experts=256,
    expert_width=2048,
    router=SigmoidBiasConfig(top_k=8, groups=8, top_groups=4, scale=2.5),
    branch="shared",
    branch_width=2048,
)

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    read=read,
    write=write,
    layout=layout,
    other_layouts=(partial(layout, experts=fused_experts),),
    defaults=DEFAULTS,
    nulls=NULLS | {"q_lora_rank": None, "norm_topk_prob": False, "rope_interleave": False},
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    presets={
        "deepseek-v3": Preset(
            config=ModelConfig(
                vocab_size=129_280,
                width=7168,
                context=163_840,
                layers=decoder_layers(
                    LatentAttentionConfig(
                        heads=128,
                        head_width=128,
                        rotary_width=64,
                        value_width=128,
                        kv_rank=512,
                        query_rank=1536,
                        rope_scaling=YarnScaling(factor=40.0, context=4096, magnitude=1.0),
                        scale=yarn_magnitude(40.0) ** 2 / math.sqrt(192),
                    ),
                    (DenseConfig(width=18_432),) * 3 + (_SPARSE,) * 58,
                    norm=_NORM,
                ),
                norm=_NORM,
            ),
            source="arXiv 2412.19437, section 4.2, and its published config.json",
            parameters=671e9,
            active=37e9,
        ),
    },
)
