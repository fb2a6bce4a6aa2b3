"""The tensors of GGUF files as views of our parameters: one list, for reading and for writing.

D model width, H heads, C head width, E experts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from moekit.checkpoint.layout import Part, Stored, View, stored
from moekit.config import AttentionConfig, BlockName, DenseConfig, LayerConfig, ModelConfig, MoEConfig, NormConfig
from moekit.families.gguf.architectures import Architecture
from moekit.families.parts import both, of_expert, rows

if TYPE_CHECKING:
    from torch import Tensor


def layout(
    architecture: Architecture, config: ModelConfig, has: Callable[[str], bool] = lambda name: True
) -> list[Stored]:
    """List the tensors of a model of that configuration, but for the rotary factors, which follow from it.

    has: whether the file has a tensor of that name; where stacked experts are missing, an old file's single ones are
    meant.
    """
    return list(_layout(architecture, config, has))


def _layout(architecture: Architecture, config: ModelConfig, has: Callable[[str], bool]) -> Iterator[Stored]:
    yield stored("token_embd.weight", "embedding.weight")
    yield _norm("output_norm", "norm", config.norm)
    if not config.tie_embeddings:
        yield stored("output.weight", "head.weight")
    for index, layer in enumerate(config.layers):
        theirs, ours, feed_forward = f"blk.{index}", f"layers.{index}", layer.feed_forward
        for their_name, our_name in norm_names(layer.block).items():
            yield _norm(f"{theirs}.{their_name}", f"{ours}.{our_name}", layer.norm)
        yield from _attention(theirs, layer, config.width, f"{ours}.attention", architecture.interleaved)
        if isinstance(feed_forward, DenseConfig):
            yield from _network(theirs, "", feed_forward, f"{ours}.feed_forward")
        else:
            yield from _mixture(theirs, feed_forward, f"{ours}.feed_forward", has)


def norm_names(block: BlockName) -> dict[str, str]:
    """Give the norms of a layer of that form, by the names that files have for them, with ours."""
    names = {"attn_norm": "attention_norm", "ffn_norm": "feed_forward_norm"}
    if block == "sandwich":
        names |= {"post_attention_norm": "attention_after_norm", "post_ffw_norm": "feed_forward_after_norm"}
    return names


def _norm(theirs: str, ours: str, norm: NormConfig) -> Stored:
    """Map a norm's weight; files hold 1 + w where ours holds w."""
    entry = stored(f"{theirs}.weight", f"{ours}.weight")
    return replace(entry, plus=1.0) if norm.zero_centered else entry


def _attention(theirs: str, layer: LayerConfig, width: int, ours: str, interleaved: bool) -> Iterator[Stored]:
    attention = layer.attention
    assert isinstance(attention, AttentionConfig)
    queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    places = {
        "attn_q": (0, queries, attention.heads),
        "attn_k": (queries, queries + keys, attention.kv_heads),
        "attn_v": (queries + keys, queries + 2 * keys, 0),
    }
    for name, (begin, end, heads) in places.items():
        for kind in ("weight", "bias") if attention.qkv_bias else ("weight",):
            their_name, our_name = f"{theirs}.{name}.{kind}", f"{ours}.query_key_value.{kind}"
            if interleaved and heads:
                shape = (end - begin, width) if kind == "weight" else (end - begin,)
                yield _interleaved(their_name, our_name, begin, shape, heads)
            else:
                yield stored(their_name, our_name, rows(begin, end))
    yield from both(f"{theirs}.attn_output", f"{ours}.output", bias=attention.output_bias)
    if attention.query_key_norm != "none":
        yield _norm(f"{theirs}.attn_q_norm", f"{ours}.query_norm", layer.norm)
        yield _norm(f"{theirs}.attn_k_norm", f"{ours}.key_norm", layer.norm)


def _interleaved(theirs: str, ours: str, begin: int, shape: tuple[int, ...], heads: int) -> Stored:
    """Map a matrix whose rotary pairs, our rows i and i + C/2 of a head, are rows 2i and 2i + 1 in the file."""
    count, *rest = shape
    pairs = count // heads // 2

    def of_ours(tensor: "Tensor") -> "Tensor":
        return tensor[begin : begin + count].view(heads, 2, pairs, *rest).transpose(1, 2)

    def of_stored(tensor: "Tensor") -> "Tensor":
        return tensor.view(heads, pairs, 2, *rest)

    return Stored(name=theirs, parts=(Part(ours=ours, of_ours=of_ours, of_stored=of_stored),), shape=shape)


def _network(theirs: str, suffix: str, config: DenseConfig, ours: str) -> Iterator[Stored]:
    width, bias = config.width, config.bias
    yield from both(f"{theirs}.ffn_gate{suffix}", f"{ours}.gate_up", bias=bias, of_ours=rows(0, width))
    yield from both(f"{theirs}.ffn_up{suffix}", f"{ours}.gate_up", bias=bias, of_ours=rows(width, 2 * width))
    yield from both(f"{theirs}.ffn_down{suffix}", f"{ours}.down", bias=bias)


def _mixture(theirs: str, layer: MoEConfig, ours: str, has: Callable[[str], bool]) -> Iterator[Stored]:
    width, gate_up = layer.expert_width, f"{ours}.experts.gate_up_EGD"
    yield stored(f"{theirs}.ffn_gate_inp.weight", f"{ours}.router.weight")
    if has(f"{theirs}.ffn_gate_exps.weight"):
        yield stored(f"{theirs}.ffn_gate_exps.weight", gate_up, _of_all(0, width))
        yield stored(f"{theirs}.ffn_up_exps.weight", gate_up, _of_all(width, 2 * width))
        yield stored(f"{theirs}.ffn_down_exps.weight", f"{ours}.experts.down_EDF")
    else:
        for expert in range(layer.experts):
            yield stored(f"{theirs}.ffn_gate.{expert}.weight", gate_up, of_expert(expert, 0, width))
            yield stored(f"{theirs}.ffn_up.{expert}.weight", gate_up, of_expert(expert, width, 2 * width))
            yield stored(f"{theirs}.ffn_down.{expert}.weight", f"{ours}.experts.down_EDF", of_expert(expert))
    if layer.branch == "gated_shared":
        yield from _network(theirs, "_shexp", layer.dense_branch, f"{ours}.branch")
        yield stored(f"{theirs}.ffn_gate_inp_shexp.weight", f"{ours}.branch_gate.weight", _only_row)


def _of_all(begin: int, end: int) -> View:
    """Make the view of some rows of every expert's matrix."""
    return lambda tensor: tensor[:, begin:end]


def _only_row(tensor: "Tensor") -> "Tensor":
    return tensor[0]
