"""GPT-2: learned positions, LayerNorm with biases, one matrix for queries, keys and values, stored transposed."""

from collections.abc import Iterator
from typing import Any

from moekit.checkpoint.layout import Stored, stored
from moekit.config import AttentionConfig, DenseConfig, ModelConfig, NormConfig, decoder_layers
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.llama_like import only_dense, shared_attention
from moekit.families.parts import transposed
from moekit.families.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a GPT-2's settings."""
    settings.require("scale_attn_weights", True)
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("add_cross_attention", False)
    width, heads, layers = settings.integer("n_embd"), settings.integer("n_head"), settings.integer("n_layer")
    if heads < 1 or width % heads or not 0 < layers <= 10_000:
        raise settings.problem("n_head", f"({heads}) must divide n_embd ({width}), and n_layer lie in 1 to 10,000")
    return gpt2(
        vocab=settings.integer("vocab_size"),
        width=width,
        heads=heads,
        head_width=width // heads,
        context=settings.integer("n_positions"),
        layers=layers,
        hidden=settings.integer("n_inner", 4 * width),
        activation=settings.choice("activation_function", ACTIVATIONS),
        norm_eps=settings.number("layer_norm_epsilon"),
        tie_embeddings=settings.flag("tie_word_embeddings"),
        init_std=settings.number("initializer_range"),
    )


def gpt2(
    *,
    layers: int,
    width: int,
    heads: int,
    head_width: int,
    hidden: int | None = None,
    context: int = 1024,
    vocab: int = 50_257,
    activation: str = "gelu_tanh",
    windows: tuple[int | None, ...] = (None,),
    norm_eps: float = 1e-5,
    tie_embeddings: bool = True,
    **more: Any,
) -> ModelConfig:
    """Make a decoder of GPT-2's kind."""
    attention = AttentionConfig(
        heads=heads,
        kv_heads=heads,
        head_width=head_width,
        positions="none",
        qkv_bias=True,
        output_bias=True,
    )
    norm = NormConfig(kind="layer", eps=norm_eps)
    layer = {"width": hidden or 4 * width, "activation": activation, "gated": False, "bias": True}
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        context=context,
        layers=decoder_layers(attention, (DenseConfig.model_validate(layer),) * layers, windows=windows, norm=norm),
        norm=norm,
        learned_positions=True,
        tie_embeddings=tie_embeddings,
        **more,
    )


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a GPT-2's settings."""
    layer, attention = only_dense(config), shared_attention(config)
    if layer is None or attention is None:
        return None
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": len(config.layers),
        "n_head": attention.heads,
        "n_inner": layer.width,
        "activation_function": ACTIVATION_NAMES[layer.activation],
        "layer_norm_epsilon": config.norm.eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def layout(config: ModelConfig) -> list[Stored]:
    """List GPT-2's tensors."""
    return list(_layout(config))


def _layout(config: ModelConfig) -> Iterator[Stored]:
    yield stored("transformer.wte.weight", "embedding.weight")
    yield stored("transformer.wpe.weight", "position_embedding.weight")
    matrices = {
        "attn.c_attn": "attention.query_key_value",
        "attn.c_proj": "attention.output",
        "mlp.c_fc": "feed_forward.gate_up",
        "mlp.c_proj": "feed_forward.down",
    }
    for index in range(len(config.layers)):
        theirs, ours = f"transformer.h.{index}", f"layers.{index}"
        yield from norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        yield from norm(f"{theirs}.ln_2", f"{ours}.feed_forward_norm")
        for their_name, our_name in matrices.items():
            yield stored(f"{theirs}.{their_name}.weight", f"{ours}.{our_name}.weight", transposed)
            yield stored(f"{theirs}.{their_name}.bias", f"{ours}.{our_name}.bias")
    yield from norm("transformer.ln_f", "norm")
    yield from head(config)


def norm(theirs: str, ours: str) -> Iterator[Stored]:
    """List a LayerNorm's two tensors."""
    yield stored(f"{theirs}.weight", f"{ours}.weight")
    yield stored(f"{theirs}.bias", f"{ours}.bias")


def head(config: ModelConfig) -> Iterator[Stored]:
    """Take the output's matrix, which files of tied models may hold as a copy of the embedding."""
    own = stored("lm_head.weight", "embedding.weight" if config.tie_embeddings else "head.weight")
    yield Stored(name=own.name, parts=own.parts, optional=config.tie_embeddings)


_SOURCE = "Radford et al. 2019, table 2, and the published config.json"

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    read=read,
    write=write,
    layout=layout,
    defaults=DEFAULTS,
    nulls={"n_inner": None},
    aliases=ALIASES,
    presets={
        "gpt2": Preset(config=gpt2(layers=12, width=768, heads=12, head_width=64), source=_SOURCE, parameters=124e6),
        "gpt2-medium": Preset(
            config=gpt2(layers=24, width=1024, heads=16, head_width=64), source=_SOURCE, parameters=355e6
        ),
        "gpt2-large": Preset(
            config=gpt2(layers=36, width=1280, heads=20, head_width=64), source=_SOURCE, parameters=774e6
        ),
        "gpt2-xl": Preset(
            config=gpt2(layers=48, width=1600, heads=25, head_width=64), source=_SOURCE, parameters=1558e6
        ),
    },
)
