"""XLNet: folders of transformers' XLNetLMHeadModel."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from moekit.checkpoint.layout import Stored, View, stored
from moekit.config import DenseConfig
from moekit.config.xlnet import XLNetConfig
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.parts import both
from moekit.families.settings import Settings
from moekit.families.whole import whole_family

_ATTENTION: dict[str, Literal["both", "causal"]] = {"bi": "both", "uni": "causal"}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_000,
    "d_model": 1024,
    "n_layer": 24,
    "n_head": 16,
    "d_inner": 4096,
    "d_head": None,
    "ff_activation": "gelu",
    "attn_type": "bi",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "mem_len": 512,
    "reuse_len": None,
    "bi_data": False,
    "clamp_len": -1,
    "same_length": False,
    "tie_word_embeddings": True,
}
ALIASES = {
    "n_token": "vocab_size",
    "hidden_size": "d_model",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read(settings: Settings) -> XLNetConfig:
    """Read the configuration. `untie_r` says nothing about a folder, which holds each layer's biases either way."""
    settings.require("architectures", ["XLNetLMHeadModel"])
    settings.require("bi_data", False)
    settings.require("same_length", False)
    settings.require("tie_word_embeddings", True)
    width, heads, layers = settings.integer("d_model"), settings.integer("n_head"), settings.integer("n_layer")
    settings.require("d_head", width // max(heads, 1))
    if not 0 < layers <= 10_000:
        raise settings.problem("n_layer", f"is {layers}, and must lie between 1 and 10,000")
    activation = settings.choice("ff_activation", ACTIVATIONS)
    network = DenseConfig(width=settings.integer("d_inner"), activation=activation, gated=False, bias=True)
    return XLNetConfig(
        vocab_size=settings.integer("vocab_size"),
        width=width,
        heads=heads,
        layers=(network,) * layers,
        attention=settings.choice("attn_type", _ATTENTION),
        memory=_positive(settings, "mem_len"),
        reuse=_positive(settings, "reuse_len"),
        clamp=_positive(settings, "clamp_len"),
        norm_eps=settings.number("layer_norm_eps"),
        init_std=settings.number("initializer_range"),
    )


def _positive(settings: Settings, key: str) -> int | None:
    """Read the integer; None where it is null, 0 or less: then transformers has no such limit."""
    value = settings.integer(key, 0)
    return value if value > 0 else None


def write(config: XLNetConfig) -> dict[str, Any] | None:
    """Give the settings, dropout at its defaults; None where layers differ or have experts, a gate, or no biases."""
    network = config.layers[0]
    if not isinstance(network, DenseConfig) or set(config.layers) != {network}:
        return None
    if network.gated or not network.bias:
        return None
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "n_layer": len(config.layers),
        "n_head": config.heads,
        "d_head": config.width // config.heads,
        "d_inner": network.width,
        "ff_activation": ACTIVATION_NAMES[network.activation],
        "attn_type": next(theirs for theirs, ours in _ATTENTION.items() if ours == config.attention),
        "untie_r": True,
        "mem_len": config.memory,
        "reuse_len": config.reuse,
        "clamp_len": -1 if config.clamp is None else config.clamp,
        "bi_data": False,
        "same_length": False,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
    }


def layout(config: XLNetConfig) -> list[Stored]:
    """List the tensors of a folder, the head's copy of the embedding where it has one."""
    return list(_layout(config))


def _layout(config: XLNetConfig) -> Iterator[Stored]:
    yield stored("transformer.word_embedding.weight", "embedding.weight")
    yield stored("transformer.mask_emb", "mask_embedding", lambda vector: vector[None, None])
    for index in range(len(config.layers)):
        theirs, ours = f"transformer.layer.{index}.rel_attn", f"layers.{index}.attention"
        yield stored(f"{theirs}.q", f"{ours}.query.weight", _by_head(config))
        yield stored(f"{theirs}.k", f"{ours}.key_value.weight", _by_head(config, 0))
        yield stored(f"{theirs}.v", f"{ours}.key_value.weight", _by_head(config, 1))
        yield stored(f"{theirs}.r", f"{ours}.position_key.weight", _by_head(config))
        yield stored(f"{theirs}.o", f"{ours}.output.weight", _by_head_of_rows(config))
        yield stored(f"{theirs}.r_w_bias", f"{ours}.content_bias_HC")
        yield stored(f"{theirs}.r_r_bias", f"{ours}.position_bias_HC")
        yield stored(f"{theirs}.r_s_bias", f"{ours}.segment_bias_HC")
        yield stored(f"{theirs}.seg_embed", f"{ours}.segment_2HC")
        yield from both(f"{theirs}.layer_norm", f"layers.{index}.attention_norm", bias=True)
        theirs, ours = f"transformer.layer.{index}.ff", f"layers.{index}.feed_forward"
        yield from both(f"{theirs}.layer_1", f"{ours}.network.gate_up", bias=True)
        yield from both(f"{theirs}.layer_2", f"{ours}.network.down", bias=True)
        yield from both(f"{theirs}.layer_norm", f"{ours}.norm", bias=True)
    yield stored("lm_loss.bias", "head_bias")
    copy = stored("lm_loss.weight", "embedding.weight")
    yield Stored(name=copy.name, parts=copy.parts, optional=True)


def _by_head(config: XLNetConfig, block: int = 0) -> View:
    """View the D rows of our matrix that are block `block` as transformers' (D, H, C)."""

    def view(matrix: Tensor) -> Tensor:
        rows = matrix[block * config.width : (block + 1) * config.width]
        return rows.t().view(config.width, config.heads, -1)

    return view


def _by_head_of_rows(config: XLNetConfig) -> View:
    """View our matrix, whose columns are the heads', as transformers' (D, H, C)."""
    return lambda matrix: matrix.view(config.width, config.heads, -1)


def _published(layers: int, width: int) -> Preset:
    # config.json says "gelu", which transformers takes for the exact one; XLNet's code has the tanh approximation.
    network = DenseConfig(width=4 * width, activation="gelu", gated=False, bias=True)
    return Preset(
        config=XLNetConfig(vocab_size=32_000, width=width, heads=width // 64, layers=(network,) * layers),
        source=(
            "README.md of https://github.com/zihangdai/xlnet (sizes); "
            f"https://huggingface.co/xlnet/xlnet-{'base' if layers == 12 else 'large'}-cased config.json"
        ),
    )


FAMILY = Family(
    model_type="xlnet",
    architecture="XLNetLMHeadModel",
    read=read,
    write=write,
    layout=layout,
    defaults=DEFAULTS,
    nulls=dict.fromkeys(("d_head", "mem_len", "reuse_len")),
    aliases=ALIASES,
    presets={"xlnet-base-cased": _published(12, 768), "xlnet-large-cased": _published(24, 1024)},
)

# What the other cannot say, experts above all. The order is that of preference.
FAMILIES = (FAMILY, whole_family(XLNetConfig, "moekit_xlnet", "XLNet"))
