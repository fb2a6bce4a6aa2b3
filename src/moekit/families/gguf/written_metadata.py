"""A configuration as the metadata of a GGUF file.

What a file cannot say is found by reading: what would be written is read again, and has to be the configuration.
"""

from collections.abc import Iterator
from pathlib import Path

from moekit.checkpoint.gguf import Metadata, Written
from moekit.checkpoint.gguf.values import Value
from moekit.config import AttentionConfig, Config, DenseConfig, ModelConfig, MoEConfig
from moekit.config.comparing import Difference, differences
from moekit.core.errors import MoekitError
from moekit.families.gguf.architectures import ARCHITECTURES, Architecture, Contents, read_config
from moekit.families.gguf.rope_metadata import rope_factors, write_rope
from moekit.families.gguf.tensors import layout


def describe(config: Config) -> tuple[Architecture, dict[str, Written]]:
    """Find the architecture to write a model of that configuration as, and its metadata.

    Raises ValueError, with the nearest architecture and the fields that it cannot hold, where no file can say it.
    """
    if not isinstance(config, ModelConfig):
        raise ValueError("GGUF files hold causal decoders")
    nearest: list[Difference] = []
    name = ""
    for architecture in ARCHITECTURES.values():
        if not _has_usual_biases(architecture, config):
            continue
        try:
            keys = dict(_keys(architecture, config))
            unsaid = list(differences(with_plain_norms(config), read_again(architecture, config, keys)))
        except (MoekitError, ValueError):
            continue
        if not unsaid:
            return architecture, keys
        if not nearest or len(unsaid) < len(nearest):
            nearest, name = unsaid, architecture.name
    which = f" ({name}, the nearest, differs in {_in_words(nearest)})" if nearest else ""
    raise ValueError(f"no known architecture says it{which}")


def _has_usual_biases(architecture: Architecture, config: ModelConfig) -> bool:
    """Tell whether other programs look for such biases in attention there: some refuse what is missing, or is more."""
    for layer in config.layers:
        if isinstance(layer.attention, AttentionConfig):
            biases = layer.attention.qkv_bias, layer.attention.output_bias
            match architecture.biases:
                case "none" if any(biases):
                    return False
                case "qkv" if biases != (True, False):
                    return False
                case "any" if biases[0] != biases[1]:
                    return False
    return True


def read_again(architecture: Architecture, config: ModelConfig, keys: dict[str, Written]) -> ModelConfig:
    """Read the configuration out of a file with those keys and with the tensors that `layout` gives."""
    shapes: dict[str, tuple[int, ...]] = {entry.name: () for entry in layout(architecture, config)}
    shapes["token_embd.weight"] = (config.vocab_size, config.width)
    contents = Contents(shapes=shapes, rope_factors=factors_of(config))
    # No key that describes a model holds a list, which a file would give back as an array.
    values: dict[str, Value] = {
        "general.architecture": architecture.name,
        **{key: value for key, value in keys.items() if not isinstance(value, list | bytes)},
    }
    return read_config(Metadata(values, Path("the file to be written")), contents)


def with_plain_norms(config: ModelConfig) -> ModelConfig:
    """Give the configuration as a file has it, whose norms hold 1 + w where ours are `zero_centered` and hold w."""
    plain = {"zero_centered": False}
    layers = tuple(layer.model_copy(update={"norm": layer.norm.model_copy(update=plain)}) for layer in config.layers)
    return config.model_copy(update={"layers": layers, "norm": config.norm.model_copy(update=plain)})


def factors_of(config: ModelConfig) -> list[float] | None:
    """Give the numbers of the tensor of rope factors that a file of that model has; None where it has none."""
    attention = config.layers[0].attention
    return rope_factors(attention, attention.head_width) if isinstance(attention, AttentionConfig) else None


def _keys(architecture: Architecture, config: ModelConfig) -> Iterator[tuple[str, Written]]:
    prefix = architecture.name
    # Layers that see everything speak for the model; what those with a window have instead stands in keys of their own.
    layer = next((layer for layer in config.layers if layer.attention.window is None), config.layers[0])
    attention, feed_forward = layer.attention, layer.feed_forward
    if not isinstance(attention, AttentionConfig):
        raise ValueError("its attention is latent")
    yield f"{prefix}.block_count", len(config.layers)
    yield f"{prefix}.context_length", config.context
    yield f"{prefix}.embedding_length", config.width
    yield f"{prefix}.vocab_size", config.vocab_size
    yield f"{prefix}.attention.head_count", attention.heads
    yield f"{prefix}.attention.head_count_kv", attention.kv_heads
    yield f"{prefix}.attention.key_length", attention.head_width
    yield f"{prefix}.attention.value_length", attention.head_width
    yield f"{prefix}.attention.layer_norm_rms_epsilon", config.norm.eps
    yield from write_rope(attention, prefix, attention.head_width).items()
    yield from _window_keys(architecture, config)
    if isinstance(feed_forward, DenseConfig):
        yield f"{prefix}.feed_forward_length", feed_forward.width
    else:
        yield from _expert_keys(architecture, feed_forward)


def _window_keys(architecture: Architecture, config: ModelConfig) -> Iterator[tuple[str, Written]]:
    prefix, attentions = architecture.name, [layer.attention for layer in config.layers]
    local = next((attention for attention in attentions if attention.window is not None), None)
    if local is None or local.window is None:
        return
    yield f"{prefix}.attention.sliding_window", local.window
    if architecture.window_period is None:
        return
    period = next((index + 1 for index, attention in enumerate(attentions) if attention.window is None), 0)
    # Fewer layers than the period, and none that sees everything: the usual period says that, too.
    if period != architecture.window_period and (period or len(attentions) >= architecture.window_period):
        yield f"{prefix}.attention.sliding_window_pattern", period
    if local.rope_base != architecture.window_rope_base:
        yield f"{prefix}.rope.freq_base_swa", float(local.rope_base)


def _expert_keys(architecture: Architecture, layer: MoEConfig) -> Iterator[tuple[str, Written]]:
    prefix = architecture.name
    yield f"{prefix}.feed_forward_length", layer.expert_width
    yield f"{prefix}.{architecture.expert_width_key}", layer.expert_width
    yield f"{prefix}.expert_count", layer.experts
    yield f"{prefix}.expert_used_count", layer.router.experts_per_token
    if architecture.gated_branch:
        yield f"{prefix}.expert_shared_feed_forward_length", layer.branch_width


def _in_words(unsaid: list[Difference]) -> str:
    shown = ", ".join(field.path or "its class" for field in unsaid[:2])
    return shown if len(unsaid) <= 2 else f"{shown} and {len(unsaid) - 2} more"
