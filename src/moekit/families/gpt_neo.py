"""GPT-Neo: GPT-2's kind with global and local layers in turn, unscaled scores, and separate matrices without biases."""

from collections.abc import Iterator
from typing import Any

from moekit.checkpoint.layout import Stored, stored
from moekit.config import AttentionConfig, DenseConfig, ModelConfig, NormConfig, decoder_layers
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.gpt2 import head, norm
from moekit.families.llama_like import only_dense, shared_attention, windows_of
from moekit.families.parts import both, separate_projections
from moekit.families.settings import Settings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    "attention_types": [[["global", "local"], 12]],
    "attention_layers": None,
    "num_heads": 16,
    "intermediate_size": None,
    "window_size": 256,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a GPT-Neo's settings."""
    width, heads, layers = (
        settings.integer("hidden_size"),
        settings.integer("num_heads"),
        settings.integer("num_layers"),
    )
    if heads < 1 or width % heads or not 0 < layers <= 10_000:
        raise settings.problem("num_heads", f"({heads}) must divide hidden_size ({width})")
    window, kinds = settings.integer("window_size"), _kinds(settings, layers)
    return _neo(
        vocab=settings.integer("vocab_size"),
        width=width,
        heads=heads,
        layers=layers,
        context=settings.integer("max_position_embeddings"),
        hidden=settings.integer("intermediate_size", 4 * width),
        windows=tuple(window if kind == "local" else None for kind in kinds),
        activation=settings.choice("activation_function", ACTIVATIONS),
        norm_eps=settings.number("layer_norm_epsilon"),
        tie_embeddings=settings.flag("tie_word_embeddings"),
        init_std=settings.number("initializer_range"),
    )


def _kinds(settings: Settings, layers: int) -> list[str]:
    """Read `global` or `local` for each layer; old files have only `attention_types`, [[kinds, how often], ...]."""
    kinds = settings.values.get("attention_layers")
    try:
        if kinds is None:
            types = settings.values.get("attention_types")
            kinds = [kind for pattern, times in types for _ in range(min(times, 10_000)) for kind in pattern]  # type: ignore[union-attr]
        if len(kinds) == layers and set(kinds) <= {"global", "local"}:
            return list(kinds)
    except (TypeError, ValueError):
        pass
    raise settings.problem("attention_types", f"must say global or local for each of the {layers} layers")


def _neo(
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    windows: tuple[int | None, ...] = (None, 256),
    vocab: int = 50_257,
    context: int = 2048,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-5,
    **more: Any,
) -> ModelConfig:
    attention = AttentionConfig(
        heads=heads, kv_heads=heads, head_width=width // heads, positions="none", scale=1.0, output_bias=True
    )
    layer = {"width": hidden, "activation": activation, "gated": False, "bias": True}
    norm = NormConfig(kind="layer", eps=norm_eps)
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        context=context,
        layers=decoder_layers(attention, (DenseConfig.model_validate(layer),) * layers, windows=windows, norm=norm),
        norm=norm,
        learned_positions=True,
        **{"tie_embeddings": True, **more},
    )


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a GPT-Neo's settings."""
    layer, attention = only_dense(config), shared_attention(config)
    if layer is None or attention is None:
        return None
    windows = windows_of(config)
    sizes = {window for window in windows if window is not None}
    if len(sizes) > 1:
        return None
    kinds = ["global" if window is None else "local" for window in windows]
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_layers": len(config.layers),
        "num_heads": attention.heads,
        "intermediate_size": layer.width,
        "window_size": sizes.pop() if sizes else 256,
        "attention_types": [[[kind], 1] for kind in kinds],
        "attention_layers": kinds,
        "activation_function": ACTIVATION_NAMES[layer.activation],
        "layer_norm_epsilon": config.norm.eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def layout(config: ModelConfig) -> list[Stored]:
    """List GPT-Neo's tensors."""
    return list(_layout(config))


def _layout(config: ModelConfig) -> Iterator[Stored]:
    yield stored("transformer.wte.weight", "embedding.weight")
    yield stored("transformer.wpe.weight", "position_embedding.weight")
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.attention, AttentionConfig)
        theirs, ours = f"transformer.h.{index}", f"layers.{index}"
        yield from norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        yield from norm(f"{theirs}.ln_2", f"{ours}.feed_forward_norm")
        yield from separate_projections(f"{theirs}.attn.attention", layer.attention, f"{ours}.attention", "out_proj")
        yield from both(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.gate_up", bias=True)
        yield from both(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down", bias=True)
    yield from norm("transformer.ln_f", "norm")
    yield from head(config)


_SOURCE = "EleutherAI's published config.json"

FAMILY = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    read=read,
    write=write,
    layout=layout,
    defaults=DEFAULTS,
    nulls={"intermediate_size": None, "attention_types": DEFAULTS["attention_types"], "attention_layers": None},
    aliases=ALIASES,
    presets={
        "gpt-neo-1.3b": Preset(
            config=_neo(layers=24, width=2048, heads=16, hidden=8192), source=_SOURCE, parameters=1.3e9
        ),
        "gpt-neo-2.7b": Preset(
            config=_neo(layers=32, width=2560, heads=20, hidden=10_240), source=_SOURCE, parameters=2.7e9
        ),
    },
)
