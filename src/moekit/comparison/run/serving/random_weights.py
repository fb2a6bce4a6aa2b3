"""Packed weights of any size made of random blocks, without ever being numbers in fp32.

All models of a comparison are cut from the same memory, each from its start: they are never read at the same time, and
each reads far more than a cache holds before it reads anything again.

V vocabulary, D model width, E experts, R rows.
"""

import math
import mmap
from collections.abc import Mapping

import numpy as np
import torch

from moekit.comparison.run.serving.drawn_routing import Choices, solve_router
from moekit.config import AttentionConfig, DenseConfig, LayerConfig, ModelConfig, MoEConfig
from moekit.kernels.native.products import multiply
from moekit.kernels.native.weights import (
    AttentionWeights,
    DecoderWeights,
    LayerWeights,
    MoEWeights,
    NetworkWeights,
)
from moekit.kernels.packed import BF16, F32, BlockType, Bytes, Numbers, PackedMatrix
from moekit.kernels.packed.quantize_blocks import quantize

# With norms so small a layer adds next to nothing to what it reads: routers then see the token's embedding alone.
_SMALL = 2.0**-10
# Rows of random blocks that are drawn; the rest are copies of them, read from memory like any others.
_DRAWN, _DRAWN_COLUMNS = 1 << 12, 1 << 12
_LINE = 64


class Arena:
    """Memory from which matrices are cut, one after the other; `restart` begins anew.

    Args:
        kind: the type of the matrices.
        size: bytes; None for no memory at all: then all numbers are the same zero, and only shapes count.

    Attributes:
        data_B: all of the memory, None where there is none.
    """

    def __init__(self, kind: BlockType, size: int | None = None) -> None:
        self.kind = kind
        self._step = math.lcm(_LINE, kind.size)
        self._used = 0
        self.data_B: Bytes | None = None if size is None else _random_bytes(kind, size)

    @property
    def used(self) -> int:
        """The bytes that are cut so far."""
        return self._used

    def restart(self) -> None:
        """Cut from the start again."""
        self._used = 0

    def cut(self, rows: int, columns: int) -> PackedMatrix:
        """Cut a matrix. Raises ValueError where the memory is too small, or rows are not whole blocks."""
        row_bytes = self.kind.row_bytes(columns)
        begin, self._used = self._used, self._used + -(-rows * row_bytes // self._step) * self._step
        if self.data_B is None:
            return PackedMatrix(np.broadcast_to(np.uint8(0), (rows, row_bytes)), self.kind, columns)
        if self._used > len(self.data_B):
            raise ValueError("the memory is too small for these matrices")
        return PackedMatrix(self.data_B[begin : begin + rows * row_bytes].reshape(rows, row_bytes), self.kind, columns)


def arena_bytes(config: ModelConfig, kind: BlockType) -> int:
    """Count the bytes that the matrices of a model take of an Arena."""
    arena = Arena(kind)
    random_weights(config, arena, random_embedding(config, np.random.default_rng(0)), {})
    return arena.used


def random_embedding(config: ModelConfig, random: np.random.Generator) -> Numbers:
    """Draw embedding_VD from a normal distribution; each number is one that bf16 has."""
    return _rounded(random.standard_normal((config.vocab_size, config.width), np.float32))


def router_input(embedding_VD: Numbers) -> Numbers:
    """Give what the routers of `random_weights` read at each token, (V, D), but for what layers add."""
    return _normed(embedding_VD) * np.float32(_SMALL)


def random_weights(
    config: ModelConfig, arena: Arena, embedding_VD: Numbers, choices: Mapping[int, Choices]
) -> DecoderWeights:
    """Make the weights of a decoder that the native engine computes.

    Args:
        config: the decoder's; its norms are RMS norms and its attention is grouped.
        arena: gives the matrices, but for embedding and routers.
        embedding_VD: from `random_embedding`.
        choices: by layer, the experts that the first tokens of the vocabulary choose; a layer that is not among them
            has a router of zeros.
    """
    tokens = min((len(chosen) for chosen in choices.values()), default=0)
    input_VD = router_input(embedding_VD)[:tokens]
    embedding = _packed(embedding_VD, BF16)
    layers = tuple(
        _layer(layer, config.width, arena, _router(layer, input_VD, choices.get(index), config.width))
        for index, layer in enumerate(config.layers)
    )
    head = embedding if config.tie_embeddings else arena.cut(config.vocab_size, config.width)
    return DecoderWeights(embedding=embedding, layers=layers, norm_D=np.ones(config.width, np.float32), head=head)


def expected_logits(weights: DecoderWeights, embedding_D: Numbers) -> Numbers:
    """Compute logits_V after a token with that embedding, as if layers added nothing to it."""
    logits_V: Numbers = multiply(weights.head, _normed(embedding_D[None]))[0]
    return logits_V


def _layer(layer: LayerConfig, width: int, arena: Arena, router: PackedMatrix | None) -> LayerWeights:
    small_D = np.full(width, _SMALL, np.float32)
    part = layer.feed_forward
    assert isinstance(layer.attention, AttentionConfig)
    attention = _attention(layer.attention, width, arena)
    feed_forward: NetworkWeights | MoEWeights
    if isinstance(part, DenseConfig):
        feed_forward = _network(arena, width, part.width, gated=part.gated)
    else:
        assert router is not None
        feed_forward = _moe(part, width, arena, router)
    after = small_D if layer.block == "sandwich" else None
    return LayerWeights(
        attention_norm_D=small_D,
        attention=attention,
        feed_forward_norm_D=small_D,
        feed_forward=feed_forward,
        attention_after_norm_D=after,
        feed_forward_after_norm_D=after,
    )


def _attention(attention: AttentionConfig, width: int, arena: Arena) -> AttentionWeights:
    queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    normed = {"none": None, "head": (attention.head_width,) * 2, "all": (queries, keys)}[attention.query_key_norm]

    def bias(wanted: bool, rows: int) -> Numbers | None:
        return np.zeros(rows, np.float32) if wanted else None

    return AttentionWeights(
        query=arena.cut(queries, width),
        key=arena.cut(keys, width),
        value=arena.cut(keys, width),
        output=arena.cut(width, queries),
        query_bias=bias(attention.qkv_bias, queries),
        key_bias=bias(attention.qkv_bias, keys),
        value_bias=bias(attention.qkv_bias, keys),
        output_bias=bias(attention.output_bias, width),
        query_norm=None if normed is None else np.ones(normed[0], np.float32),
        key_norm=None if normed is None else np.ones(normed[1], np.float32),
    )


def _network(arena: Arena, width: int, hidden: int, *, gated: bool, experts: int = 1) -> NetworkWeights:
    return NetworkWeights(
        gate=arena.cut(experts * hidden, width) if gated else None,
        up=arena.cut(experts * hidden, width),
        down=arena.cut(experts * width, hidden),
    )


def _moe(part: MoEConfig, width: int, arena: Arena, router: PackedMatrix) -> MoEWeights:
    shared = part.branch != "none"
    return MoEWeights(
        router=router,
        experts=_network(arena, width, part.expert_width, gated=part.gated, experts=part.experts),
        shared_expert=_network(arena, width, part.branch_width, gated=part.gated) if shared else None,
        shared_expert_gate_D=np.zeros(width, np.float32) if part.branch == "gated_shared" else None,
    )


def _router(layer: LayerConfig, input_VD: Numbers, choice_VK: Choices | None, width: int) -> PackedMatrix | None:
    """Make the router of a layer, None where it has none."""
    part = layer.feed_forward
    if isinstance(part, DenseConfig):
        return None
    if choice_VK is None:
        return _packed(np.zeros((part.experts, width), np.float32), F32)
    return _packed(solve_router(input_VD, choice_VK[: len(input_VD)], part.experts), F32)


def _normed(x_VD: Numbers) -> Numbers:
    scale_V1 = np.sqrt(np.square(x_VD).mean(-1, keepdims=True))
    normed_VD: Numbers = np.asarray(x_VD / scale_V1, np.float32)
    return normed_VD


def _rounded(x_VD: Numbers) -> Numbers:
    return np.asarray(torch.from_numpy(x_VD).bfloat16().float().numpy())


def _packed(x_RD: Numbers, kind: BlockType) -> PackedMatrix:
    return quantize(torch.from_numpy(x_RD), kind)


def _random_bytes(kind: BlockType, size: int) -> Bytes:
    """Fill memory with blocks of normal numbers: as many as are drawn, again and again."""
    generator = torch.Generator().manual_seed(0)
    rows = min(_DRAWN, 1 + size // kind.row_bytes(_DRAWN_COLUMNS))
    drawn_B = quantize(0.02 * torch.randn(rows, _DRAWN_COLUMNS, generator=generator), kind).data_RB.ravel()
    # Pages that are there at once, as many small ones: where memory is the machine's to give, faults cost seconds.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    data_B = np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
    for begin in range(0, size, len(drawn_B)):
        part_B = data_B[begin : begin + len(drawn_B)]
        part_B[:] = drawn_B[: len(part_B)]
    return data_B
