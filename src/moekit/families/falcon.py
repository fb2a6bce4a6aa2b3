"""Falcon in its three forms: one key-value head with one norm, groups of them with two norms, and all with ALiBi."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from moekit.checkpoint.layout import Part, Stored, View, stored
from moekit.config import AttentionConfig, DenseConfig, ModelConfig, NormConfig, decoder_layers
from moekit.families.activations import ACTIVATION_NAMES, ACTIVATIONS
from moekit.families.family import Family, Preset
from moekit.families.gpt2 import head, norm
from moekit.families.llama_like import NULLS, ROPE_DEFAULTS, number_of_layers, only_dense, shared_attention
from moekit.families.parts import both, read_rope, write_rope
from moekit.families.settings import Settings

Block = Literal["pre", "parallel", "parallel_shared"]

DEFAULTS: dict[str, Any] = {
    "vocab_size": 65_024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": None,
    "num_ln_in_parallel_attn": None,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    **ROPE_DEFAULTS,
}


def read(settings: Settings) -> ModelConfig:
    """Read our configuration of a Falcon's settings."""
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if heads < 1 or width % heads:
        raise settings.problem("num_attention_heads", f"({heads}) must divide hidden_size ({width})")
    grouped = settings.flag("new_decoder_architecture")
    one = settings.flag("multi_query") and not grouped
    kv_heads = 1 if one else settings.integer("num_kv_heads", heads) if grouped else heads
    rope, bias, alibi = read_rope(settings), settings.flag("bias"), settings.flag("alibi")
    layer = DenseConfig(
        width=settings.integer("ffn_hidden_size", 4 * width),
        activation=settings.choice("activation", ACTIVATIONS),
        gated=False,
        bias=bias,
    )
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        positions="alibi" if alibi else "rotary",
        rope_base=rope.rope_base,
        rope_scaling=rope.rope_scaling,
        qkv_bias=bias,
        output_bias=bias,
    )
    block, norm = _read_block(settings, grouped=grouped), _norm(settings.number("layer_norm_epsilon"))
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        width=width,
        context=settings.integer("max_position_embeddings"),
        layers=decoder_layers(attention, (layer,) * number_of_layers(settings), block=block, norm=norm),
        norm=norm,
        tie_embeddings=settings.flag("tie_word_embeddings"),
        init_std=settings.number("initializer_range"),
    )


def _norm(eps: float = 1e-5) -> NormConfig:
    return NormConfig(kind="layer", eps=eps)


def _read_block(settings: Settings, *, grouped: bool) -> Block:
    if grouped:
        # The number of norms decides; without it there are two.
        return "parallel_shared" if settings.integer("num_ln_in_parallel_attn", 2) == 1 else "parallel"
    return "parallel_shared" if settings.flag("parallel_attn") else "pre"


def write(config: ModelConfig) -> dict[str, Any] | None:
    """Give a Falcon's settings."""
    layer, attention, block = only_dense(config), shared_attention(config), config.layers[0].block
    if layer is None or attention is None:
        return None
    grouped = block == "parallel" or attention.kv_heads not in (1, attention.heads)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "max_position_embeddings": config.context,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_kv_heads": attention.kv_heads,
        "ffn_hidden_size": layer.width,
        "activation": ACTIVATION_NAMES[layer.activation],
        "bias": layer.bias,
        "alibi": attention.positions == "alibi",
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (1 if block == "parallel_shared" else 2) if grouped else None,
        "multi_query": attention.kv_heads == 1,
        "parallel_attn": block != "pre",
        "layer_norm_epsilon": config.norm.eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(attention),
    }


def layout(config: ModelConfig) -> list[Stored]:
    """Falcon's tensors."""
    return list(_layout(config))


def _layout(config: ModelConfig) -> Iterator[Stored]:
    yield stored("transformer.word_embeddings.weight", "embedding.weight")
    for index, layer in enumerate(config.layers):
        attention = layer.attention
        assert isinstance(attention, AttentionConfig)
        theirs, ours = f"transformer.h.{index}", f"layers.{index}"
        if layer.block == "parallel":
            yield from norm(f"{theirs}.ln_attn", f"{ours}.attention_norm")
            yield from norm(f"{theirs}.ln_mlp", f"{ours}.feed_forward_norm")
        else:
            yield from norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm")
        if layer.block == "pre":
            yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward_norm")
        yield from _projections(f"{theirs}.self_attention", attention, f"{ours}.attention", config.width)
        yield from both(f"{theirs}.self_attention.dense", f"{ours}.attention.output", bias=attention.output_bias)
        yield from both(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.feed_forward.gate_up", bias=attention.output_bias)
        yield from both(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.feed_forward.down", bias=attention.output_bias)
    yield from norm("transformer.ln_f", "norm")
    yield from head(config)


def _projections(theirs: str, attention: AttentionConfig, ours: str, width: int) -> Iterator[Stored]:
    """Take queries, keys and values as one matrix: for each key-value head its queries, its key, its value.

    That is one group of all queries for the form with one key-value head, and [q, k, v] a head for that with all.
    """
    weight = f"{ours}.query_key_value.weight"
    yield _fused(f"{theirs}.query_key_value.weight", weight, attention, (width,))
    if attention.qkv_bias:
        yield _fused(f"{theirs}.query_key_value.bias", f"{ours}.query_key_value.bias", attention, ())


def _fused(theirs: str, ours: str, attention: AttentionConfig, inner: tuple[int, ...]) -> Stored:
    groups, width = attention.kv_heads, attention.head_width
    shared = attention.heads // groups
    queries = groups * shared

    def of_ours(begin: int, end: int) -> View:
        def view(tensor: Tensor) -> Tensor:
            return tensor[begin * width : end * width].view(groups, -1, width, *inner)

        return view

    def of_stored(begin: int, end: int) -> View:
        def view(tensor: Tensor) -> Tensor:
            return tensor.view(groups, shared + 2, width, *inner)[:, begin:end]

        return view

    # Heads in our matrix, and in each of the file's groups.
    places = (
        ((0, queries), (0, shared)),
        ((queries, queries + groups), (shared, shared + 1)),
        ((queries + groups, queries + 2 * groups), (shared + 1, shared + 2)),
    )
    return Stored(
        name=theirs,
        shape=(groups * (shared + 2) * width, *inner),
        parts=tuple(Part(ours=ours, of_ours=of_ours(*a), of_stored=of_stored(*b)) for a, b in places),
    )


def _falcon(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    block: Block,
    *,
    positions: Literal["rotary", "alibi"] = "rotary",
    vocab: int = 65_024,
    bias: bool = False,
) -> ModelConfig:
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        positions=positions,
        qkv_bias=bias,
        output_bias=bias,
    )
    layer = DenseConfig(width=4 * width, activation="gelu", gated=False, bias=bias)
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        context=2048,
        layers=decoder_layers(attention, (layer,) * layers, block=block, norm=_norm()),
        norm=_norm(),
        tie_embeddings=True,
    )


_SOURCE = "arXiv 2311.16867, table 16, and the published config.json"

FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    read=read,
    write=write,
    layout=layout,
    defaults=DEFAULTS,
    nulls=NULLS
    | dict.fromkeys(("num_kv_heads", "num_ln_in_parallel_attn", "ffn_hidden_size"))
    | dict.fromkeys(("alibi", "new_decoder_architecture", "multi_query", "parallel_attn", "bias"), False),
    aliases={"n_embed": "hidden_size"},
    presets={
        "falcon-7b": Preset(config=_falcon(32, 4544, 71, 1, "parallel_shared"), source=_SOURCE, parameters=7e9),
        "falcon-40b": Preset(config=_falcon(60, 8192, 128, 8, "parallel"), source=_SOURCE, parameters=40e9),
        "falcon-180b": Preset(config=_falcon(80, 14_848, 232, 8, "parallel"), source=_SOURCE, parameters=180e9),
        "falcon-rw-1b": Preset(
            config=_falcon(24, 2048, 32, 32, "pre", positions="alibi", vocab=50_304, bias=True),
            source="its published config.json",
            parameters=1.3e9,
        ),
    },
)
