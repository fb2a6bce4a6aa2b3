"""The architectures of GGUF files that moekit knows, as data: what their metadata says of a configuration, and back.

Keys and what they leave unsaid (whether the weights of the chosen experts are renormalised, how rotary positions pair a
head's rows) are those of llama.cpp's loader and graphs (src/models/*.cpp).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moekit.checkpoint.gguf import Metadata, Written
from moekit.config import (
    MAX_LAYERS,
    AttentionConfig,
    Config,
    DenseConfig,
    FeedForwardConfig,
    ModelConfig,
    MoEConfig,
    SoftmaxTopKConfig,
    YarnScaling,
)
from moekit.core.errors import did_you_mean
from moekit.families.gguf.rope import read_rope, rope_factors, write_rope
from moekit.families.llama_like import dropless_softmax, only_dense, only_moe


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What an architecture leaves unsaid.

    interleaved: rotary positions turn the pairs (2i, 2i + 1) of a head's rows, and queries and keys are stored so.
    experts: whether its layers may be, have to be, or cannot be mixtures. renormalize: the chosen experts' weights.
    biases: of attention's matrices; `any` where files may have them or not.
    expert_width_key: the key of the experts' hidden width.
    """

    name: str
    interleaved: bool = False
    experts: Literal["never", "maybe", "always"] = "never"
    renormalize: bool = True
    gated_branch: bool = False
    query_key_norm: Literal["none", "head", "all"] = "none"
    biases: Literal["none", "qkv", "any"] = "none"
    expert_width_key: str = "feed_forward_length"


ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(name="llama", interleaved=True, experts="maybe", biases="any"),
        Architecture(name="qwen2", biases="qkv"),
        Architecture(name="qwen3", query_key_norm="head"),
        Architecture(
            name="qwen2moe",
            experts="always",
            renormalize=False,
            gated_branch=True,
            biases="qkv",
            expert_width_key="expert_feed_forward_length",
        ),
        Architecture(
            name="qwen3moe", experts="always", query_key_norm="head", expert_width_key="expert_feed_forward_length"
        ),
        Architecture(name="olmoe", experts="always", renormalize=False, query_key_norm="all"),
    )
}
"""By name; the first that can say a configuration is the one it is written as."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file says by its tensors. shapes: by name. rope_factors: numbers of that tensor, where there is one."""

    shapes: Mapping[str, Sequence[int]]
    rope_factors: Sequence[float] | None = None


def architecture_of(metadata: Metadata) -> Architecture:
    """The architecture that the file names; MoekitError where moekit has not that one."""
    name = metadata.get_as(str, "general.architecture")
    if name not in ARCHITECTURES:
        known = did_you_mean(name, ARCHITECTURES).rstrip(".?")
        raise metadata.problem("general.architecture", f"is {name!r}, which moekit does not read; {known}")
    return ARCHITECTURES[name]


def read_config(metadata: Metadata, contents: Contents) -> ModelConfig:
    """Our configuration of a file; MoekitError where it is not supported or contradicts itself."""
    architecture = architecture_of(metadata)
    prefix = architecture.name
    for key in ("expert_weights_scale", "attention.clamp_kqv", "attention.scale", "logit_scale", "embedding_scale"):
        if metadata.get(f"{prefix}.{key}") not in (None, 0.0, 1.0):
            raise metadata.problem(f"{prefix}.{key}", "is set, which moekit does not compute in this architecture")
    layers = metadata.get_as(int, f"{prefix}.block_count")
    if not 0 < layers <= MAX_LAYERS:
        raise metadata.problem(f"{prefix}.block_count", f"is {layers}, and must lie between 1 and {MAX_LAYERS:,}")
    embedding = contents.shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise metadata.problem(
            "token_embd.weight", "is missing or no matrix; there is no other place for the vocabulary"
        )
    try:
        return ModelConfig(
            vocab_size=embedding[0],
            width=metadata.get_as(int, f"{prefix}.embedding_length"),
            context=metadata.get_as(int, f"{prefix}.context_length"),
            attention=_attention(metadata, architecture, contents),
            layers=(_feed_forward(metadata, architecture, contents),) * layers,
            norm_eps=_eps(metadata, prefix),
            tie_embeddings="output.weight" not in contents.shapes,
        )
    except ValueError as error:  # pydantic's: values contradict each other or lie out of bounds
        problem = str(error).splitlines()
        raise metadata.problem("its metadata", f"describes no model ({' '.join(problem[1:3]).strip()})") from error


def describe(config: Config) -> tuple[Architecture, dict[str, Written]]:
    """The architecture to write a model of that configuration as, and its metadata; ValueError where there is none."""
    if isinstance(config, ModelConfig):
        for architecture in ARCHITECTURES.values():
            if _says(architecture, config):
                return architecture, _write(architecture, config)
    names = ", ".join(ARCHITECTURES)
    raise ValueError(f"none of the architectures of GGUF files that moekit writes ({names}) can say this model")


def _eps(metadata: Metadata, prefix: str) -> float:
    # Four bytes of the file: 1e-5 reads 9.99999974e-06, which as a double would be another number.
    return float(f"{metadata.get_as(float, f'{prefix}.attention.layer_norm_rms_epsilon'):.7g}")


def _attention(metadata: Metadata, architecture: Architecture, contents: Contents) -> AttentionConfig:
    prefix = architecture.name
    heads = metadata.get_as(int, f"{prefix}.attention.head_count")
    width = metadata.get_as(int, f"{prefix}.embedding_length") // max(heads, 1)
    head_width = metadata.get_as(int, f"{prefix}.attention.key_length", width)
    if metadata.get_as(int, f"{prefix}.attention.value_length", head_width) != head_width:
        raise metadata.problem(f"{prefix}.attention.value_length", "differs from the length of keys")
    context = metadata.get_as(int, f"{prefix}.context_length")
    rope = read_rope(metadata, prefix, head_width, context, contents.rope_factors)
    window = metadata.get_as(int, f"{prefix}.attention.sliding_window", 0)
    return AttentionConfig(
        heads=heads,
        kv_heads=metadata.get_as(int, f"{prefix}.attention.head_count_kv", heads),
        head_width=head_width,
        rope_base=rope.rope_base,
        rope_scaling=rope.rope_scaling,
        windows=(window or None,),
        qkv_bias="blk.0.attn_q.bias" in contents.shapes,
        output_bias="blk.0.attn_output.bias" in contents.shapes,
        query_key_norm=architecture.query_key_norm,
    )


def _feed_forward(metadata: Metadata, architecture: Architecture, contents: Contents) -> FeedForwardConfig:
    prefix = architecture.name
    experts = metadata.get_as(int, f"{prefix}.expert_count", 0)
    if (experts > 0 and architecture.experts == "never") or (experts == 0 and architecture.experts == "always"):
        raise metadata.problem(f"{prefix}.expert_count", f"is {experts}, which this architecture cannot have")
    if not experts:
        width = metadata.get_as(int, f"{prefix}.feed_forward_length")
        return DenseConfig(width=width, bias="blk.0.ffn_down.bias" in contents.shapes)
    top_k = metadata.get_as(int, f"{prefix}.expert_used_count")
    branch = _branch_width(metadata, architecture, contents)
    return MoEConfig(
        experts=experts,
        expert_width=_expert_width(metadata, architecture, contents),
        router=SoftmaxTopKConfig(top_k=top_k, renormalize=architecture.renormalize),
        branch="gated_shared" if branch else "none",
        branch_width=branch,
    )


def _expert_width(metadata: Metadata, architecture: Architecture, contents: Contents) -> int:
    """From the tensor, where files of before the key was there have it only there."""
    stacked = contents.shapes.get("blk.0.ffn_gate_exps.weight")
    width = stacked[1] if stacked is not None and len(stacked) == 3 else None
    return metadata.get_as(int, f"{architecture.name}.{architecture.expert_width_key}", width)


def _branch_width(metadata: Metadata, architecture: Architecture, contents: Contents) -> int:
    if not architecture.gated_branch:
        return 0
    shape = contents.shapes.get("blk.0.ffn_gate_shexp.weight")
    width = shape[0] if shape is not None and len(shape) == 2 else None
    return metadata.get_as(int, f"{architecture.name}.expert_shared_feed_forward_length", width)


def _says(architecture: Architecture, config: ModelConfig) -> bool:
    """Whether the architecture computes what the configuration says."""
    attention = config.attention
    plain = config.block == "pre" and config.norm == "rms" and not config.learned_positions
    if not plain or config.embedding_scale != 1 or config.logit_scale != 1:
        return False
    if not isinstance(attention, AttentionConfig) or attention.positions != "rotary" or len(attention.windows) > 1:
        return False
    if attention.scale is not None or attention.soft_cap is not None:
        return False
    if isinstance(attention.rope_scaling, YarnScaling) and not attention.rope_scaling.whole_ends:
        return False
    if attention.query_key_norm != architecture.query_key_norm or not _says_biases(architecture, attention):
        return False
    dense, mixture = only_dense(config), only_moe(config)
    if dense is not None:
        bias = dense.bias and architecture.biases != "any"
        return architecture.experts != "always" and dense.gated and dense.activation == "silu" and not bias
    return mixture is not None and set(config.layers) == {mixture} and _says_mixture(architecture, mixture)


def _says_biases(architecture: Architecture, attention: AttentionConfig) -> bool:
    match architecture.biases:
        case "none":
            return not attention.qkv_bias and not attention.output_bias
        case "qkv":
            return attention.qkv_bias and not attention.output_bias
        case "any":
            return attention.qkv_bias == attention.output_bias


def _says_mixture(architecture: Architecture, layer: MoEConfig) -> bool:
    router = dropless_softmax(layer)
    if architecture.experts == "never" or router is None or router.renormalize != architecture.renormalize:
        return False
    branch = "gated_shared" if architecture.gated_branch else "none"
    return layer.branch == branch and layer.gated and not layer.bias and layer.activation == "silu"


def _write(architecture: Architecture, config: ModelConfig) -> dict[str, Written]:
    attention, layer, prefix = config.attention, config.layers[0], architecture.name
    assert isinstance(attention, AttentionConfig)
    keys: dict[str, Written] = {
        f"{prefix}.block_count": len(config.layers),
        f"{prefix}.context_length": config.context,
        f"{prefix}.embedding_length": config.width,
        f"{prefix}.vocab_size": config.vocab_size,
        f"{prefix}.attention.head_count": attention.heads,
        f"{prefix}.attention.head_count_kv": attention.kv_heads,
        f"{prefix}.attention.key_length": attention.head_width,
        f"{prefix}.attention.value_length": attention.head_width,
        f"{prefix}.attention.layer_norm_rms_epsilon": config.norm_eps,
        **write_rope(attention, prefix, attention.head_width),
    }
    if attention.windows[0] is not None:
        keys[f"{prefix}.attention.sliding_window"] = attention.windows[0]
    if isinstance(layer, DenseConfig):
        return keys | {f"{prefix}.feed_forward_length": layer.width}
    keys |= {
        f"{prefix}.feed_forward_length": layer.expert_width,
        f"{prefix}.{architecture.expert_width_key}": layer.expert_width,
        f"{prefix}.expert_count": layer.experts,
        f"{prefix}.expert_used_count": layer.router.experts_per_token,
    }
    if architecture.gated_branch:
        keys[f"{prefix}.expert_shared_feed_forward_length"] = layer.branch_width
    return keys


def factors_of(config: ModelConfig) -> list[float] | None:
    """The numbers of the tensor of rotary factors that a file of that model has; None where it has none."""
    assert isinstance(config.attention, AttentionConfig)
    return rope_factors(config.attention, config.attention.head_width)
