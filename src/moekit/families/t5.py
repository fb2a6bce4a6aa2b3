"""T5: the original models, version 1.1, and FLAN-T5, whose folders are those of version 1.1.

What the Switch Transformer's folders share with T5's is here, too.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from moekit.checkpoint.layout import Stored, stored
from moekit.config import DenseConfig, FeedForwardConfig
from moekit.config.config_base import MAX_LAYERS
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.parts import of_expert, rows
from moekit.families.settings import Settings

SHAPE_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_128,
    "d_kv": 64,
    "d_ff": 2048,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": None,
    "tie_word_embeddings": True,
}
"""What T5's keys that the Switch Transformer has, too, are where config.json lacks them."""

DEFAULTS: dict[str, Any] = SHAPE_DEFAULTS | {
    "d_model": 512,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "feed_forward_proj": "relu",
    "scale_decoder_outputs": None,
}
SHAPE_NULLS: dict[str, Any] = {
    "num_decoder_layers": None,
    "decoder_start_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
ALIASES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

# An old leftover: the cross attention of the first layer never had positions.
_LEFTOVER = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def read(settings: Settings) -> EncoderDecoderConfig:
    """Read the configuration of a folder.

    Without ties, a folder of transformers before 5 says `tie_word_embeddings: false`. Since 5 that is always true, and
    `scale_decoder_outputs: false` is what remains of it: such a folder has to hold `lm_head.weight`, too.
    """
    layer = _read_network(settings)
    untied = not settings.flag("tie_word_embeddings") or not settings.flag("scale_decoder_outputs", True)
    return read_shape(
        settings,
        encoder_layers=[layer] * read_count(settings, "num_layers"),
        decoder_layers=[layer] * read_count(settings, "num_decoder_layers", settings.integer("num_layers")),
        tie_embeddings=not untied,
        scaled_logits=settings.flag("scale_decoder_outputs", settings.flag("tie_word_embeddings")),
    )


def read_shape(
    settings: Settings,
    *,
    encoder_layers: Sequence[FeedForwardConfig],
    decoder_layers: Sequence[FeedForwardConfig],
    **more: Any,
) -> EncoderDecoderConfig:
    """Make the whole from its layers' feed-forward parts and what differs between T5 and Switch."""
    settings.require("is_encoder_decoder", True)
    pad = settings.integer("pad_token_id")
    return EncoderDecoderConfig(
        vocab_size=settings.integer("vocab_size"),
        width=settings.integer("d_model"),
        heads=settings.integer("num_heads"),
        head_width=settings.integer("d_kv"),
        encoder_layers=tuple(encoder_layers),
        decoder_layers=tuple(decoder_layers),
        buckets=settings.integer("relative_attention_num_buckets"),
        max_distance=settings.integer("relative_attention_max_distance"),
        norm_eps=settings.number("layer_norm_epsilon"),
        start_token=settings.integer("decoder_start_token_id", pad),
        pad_token=pad,
        end_token=settings.integer("eos_token_id") if settings.has("eos_token_id") else None,
        init_factor=settings.number("initializer_factor"),
        **more,
    )


def read_count(settings: Settings, key: str, default: int | None = None) -> int:
    """Read how many layers there are, bounded so that a hostile file cannot make us build for ever."""
    layers = settings.integer(key, default)
    if not 0 < layers <= MAX_LAYERS:
        raise settings.problem(key, f"is {layers}, and must lie between 1 and {MAX_LAYERS:,}")
    return layers


def write(config: EncoderDecoderConfig) -> dict[str, Any] | None:
    """Give the settings of config.json; None where T5 is not of that shape."""
    plan = {*config.encoder_layers, *config.decoder_layers}
    layer = next(iter(plan))
    if len(plan) > 1 or not isinstance(layer, DenseConfig) or layer.bias or not has_shape(config):
        return None
    if config.tie_embeddings and not config.scaled_logits:
        return None  # the settings for it are those that a model without ties is read from
    name = ACTIVATION_NAMES[layer.activation]
    if layer.gated:
        if layer.activation == "gelu":
            return None  # "gated-gelu" stands for the tanh approximation
        name = "gated-gelu" if layer.activation == "gelu_tanh" else f"gated-{name}"
    return write_shape(config) | {
        "d_ff": layer.width,
        "feed_forward_proj": name,
        "dense_act_fn": ACTIVATION_NAMES[layer.activation],
        "is_gated_act": layer.gated,
        "scale_decoder_outputs": config.scaled_logits,
    }


def has_shape(config: EncoderDecoderConfig) -> bool:
    """Tell whether the model but for its feed-forward parts is T5's."""
    return config.norm == "rms" and config.positions == "relative" and config.target_vocab_size is None


def write_shape(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Give the settings that `read_shape` reads."""
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "d_kv": config.head_width,
        "num_heads": config.heads,
        "num_layers": len(config.encoder_layers),
        "num_decoder_layers": len(config.decoder_layers),
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "decoder_start_token_id": config.start_token,
        "pad_token_id": config.pad_token,
        "eos_token_id": config.end_token,
        "initializer_factor": config.init_factor,
        "is_encoder_decoder": True,
    }


def layout(config: EncoderDecoderConfig) -> list[Stored]:
    """List the tensors of a folder."""
    return list(stored_model(config, "DenseReluDense"))


def stored_model(config: EncoderDecoderConfig, feed_forward: str) -> Iterator[Stored]:
    """List all tensors. feed_forward: what the folder calls that part of a layer."""
    yield stored("shared.weight", "embedding.weight")
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        yield _copy_of(stored(copy, "embedding.weight"))
    head = stored("lm_head.weight", "embedding.weight" if config.tie_embeddings else "head.weight")
    yield _copy_of(head) if config.tie_embeddings else head
    for stack, plan in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield stored(table, f"{stack}.relative_bias.weight")
        yield stored(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight")
        for index, layer in enumerate(plan):
            theirs, ours = f"{stack}.block.{index}.layer", f"{stack}.layers.{index}"
            yield from _stored_attention(config, f"{theirs}.0.SelfAttention", f"{ours}.attention")
            yield stored(f"{theirs}.0.layer_norm.weight", f"{ours}.attention_norm.weight")
            if stack == "decoder":
                yield from _stored_cross(config, f"{theirs}.1.EncDecAttention", f"{ours}.cross_attention")
                yield stored(f"{theirs}.1.layer_norm.weight", f"{ours}.cross_norm.weight")
            last = f"{theirs}.{2 if stack == 'decoder' else 1}"
            yield stored(f"{last}.layer_norm.weight", f"{ours}.feed_forward_norm.weight")
            yield from _stored_feed_forward(f"{last}.{feed_forward}", layer, f"{ours}.feed_forward")


def _copy_of(entry: Stored) -> Stored:
    return Stored(name=entry.name, parts=entry.parts, optional=True)


def _stored_attention(config: EncoderDecoderConfig, theirs: str, ours: str) -> Iterator[Stored]:
    inner = config.heads * config.head_width
    for place, name in enumerate("qkv"):
        view = rows(place * inner, (place + 1) * inner)
        yield stored(f"{theirs}.{name}.weight", f"{ours}.query_key_value.weight", view)
    yield stored(f"{theirs}.o.weight", f"{ours}.output.weight")


def _stored_cross(config: EncoderDecoderConfig, theirs: str, ours: str) -> Iterator[Stored]:
    inner = config.heads * config.head_width
    yield stored(f"{theirs}.q.weight", f"{ours}.query.weight")
    yield stored(f"{theirs}.k.weight", f"{ours}.key_value.weight", rows(0, inner))
    yield stored(f"{theirs}.v.weight", f"{ours}.key_value.weight", rows(inner, 2 * inner))
    yield stored(f"{theirs}.o.weight", f"{ours}.output.weight")


def _stored_feed_forward(theirs: str, layer: FeedForwardConfig, ours: str) -> Iterator[Stored]:
    if isinstance(layer, DenseConfig):
        for name, view in _stored_inputs(layer.width, layer.gated).items():
            yield stored(f"{theirs}.{name}.weight", f"{ours}.gate_up.weight", rows(*view))
        yield stored(f"{theirs}.wo.weight", f"{ours}.down.weight")
        return
    yield stored(f"{theirs}.router.classifier.weight", f"{ours}.router.weight")
    for expert in range(layer.experts):
        prefix = f"{theirs}.experts.expert_{expert}"
        for name, view in _stored_inputs(layer.expert_width, layer.gated).items():
            yield stored(f"{prefix}.{name}.weight", f"{ours}.experts.gate_up_EGD", of_expert(expert, *view))
        yield stored(f"{prefix}.wo.weight", f"{ours}.experts.down_EDF", of_expert(expert))


def _stored_inputs(width: int, gated: bool) -> dict[str, tuple[int, int]]:
    """Give the rows of gate and up, by the names of the tensors that hold them."""
    return {"wi_0": (0, width), "wi_1": (width, 2 * width)} if gated else {"wi": (0, width)}


def _read_network(settings: Settings) -> DenseConfig:
    project = settings.text("feed_forward_proj")
    gated, name = project.startswith("gated-"), project.removeprefix("gated-")
    if project == "gated-gelu":
        name = "gelu_new"  # version 1.1's models were trained with the approximation
    if name not in ACTIVATIONS:
        raise settings.problem("feed_forward_proj", f"is {project!r}, and moekit has {', '.join(sorted(ACTIVATIONS))}")
    # Where files repeat in other words what `feed_forward_proj` says, transformers obeys the repetition.
    settings.require("dense_act_fn", name)
    settings.require("is_gated_act", gated)
    return DenseConfig(width=settings.integer("d_ff"), activation=ACTIVATIONS[name], gated=gated)


def _preset(
    layers: int,
    width: int,
    heads: int,
    inner: int,
    source: str,
    parameters: float,
    *,
    head_width: int = 64,
    new: bool = False,
) -> Preset:
    """Describe a published model. new: version 1.1, with gates and an output matrix of its own."""
    layer = DenseConfig(width=inner, activation="gelu_tanh" if new else "relu", gated=new)
    config = EncoderDecoderConfig(
        vocab_size=32_128,
        width=width,
        heads=heads,
        head_width=head_width,
        encoder_layers=(layer,) * layers,
        decoder_layers=(layer,) * layers,
        tie_embeddings=not new,
        scaled_logits=not new,
    )
    return Preset(config=config, source=source, parameters=parameters)


_FIRST = "arXiv 1910.10683, section 3.7; google/flaxformer t5x/configs/t5/models/t5_{}.gin"
_FLAN = "google/flaxformer t5x/configs/t5/models/t5_1_1_{}.gin; totals as of FLAN-T5, arXiv 2210.11416, table 2"

FAMILY = Family(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    read=read,
    write=write,
    layout=layout,
    leftover=lambda name: name == _LEFTOVER,
    defaults=DEFAULTS,
    nulls=SHAPE_NULLS | {"tie_word_embeddings": True},
    aliases={**ALIASES, "head_dim": "d_kv"},
    presets={
        "t5-small": _preset(6, 512, 8, 2048, _FIRST.format("small"), 60e6),
        "t5-base": _preset(12, 768, 12, 3072, _FIRST.format("base"), 220e6),
        "t5-large": _preset(24, 1024, 16, 4096, _FIRST.format("large"), 770e6),
        "t5-3b": _preset(24, 1024, 32, 16_384, _FIRST.format("3B"), 2.8e9, head_width=128),
        "t5-11b": _preset(24, 1024, 128, 65_536, _FIRST.format("11B"), 11e9, head_width=128),
        "t5-v1.1-small": _preset(8, 512, 6, 1024, _FLAN.format("small"), 80e6, new=True),
        "t5-v1.1-base": _preset(12, 768, 12, 2048, _FLAN.format("base"), 250e6, new=True),
        "t5-v1.1-large": _preset(24, 1024, 16, 2816, _FLAN.format("large"), 780e6, new=True),
        "t5-v1.1-xl": _preset(24, 2048, 32, 5120, _FLAN.format("xl"), 3e9, new=True),
        "t5-v1.1-xxl": _preset(24, 4096, 64, 10_240, _FLAN.format("xxl"), 11e9, new=True),
    },
)
