"""What the parts of a decoder take in memory, before any of it is taken."""

from dataclasses import dataclass

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFTensor
from moekit.config import ModelConfig, MoEConfig
from moekit.families.gguf import GGUFModel
from moekit.families.gguf.streamable import expert_tensors, streamable_blocks, streamable_experts
from moekit.kernels.native import instruction_set, threads
from moekit.kernels.native.block_streaming import BlockSpans
from moekit.kernels.native.decoder_description import AttentionDescription, FfnDescription, MoeDescription, describe
from moekit.kernels.native.direct_reading import FileSpan
from moekit.kernels.native.expert_streaming import ExpertSpans
from moekit.kernels.packed import F32

# Reads begin and end at such blocks (native/streaming/direct_file.h).
_BLOCK = 4096
_PAGE_POSITIONS = 256
"""Positions that a KV cache takes memory for at a time."""
_PART_POSITIONS = 512
"""Positions that are one task of a step's attention."""
_THREAD_BYTES = 1 << 20
"""What each thread computes prompts in."""
_PANEL_BYTES = 40
"""What it unpacks packed weights in, for each of their columns."""
_CHUNK = 512
"""Tokens of a prompt that are computed at once."""
_STEP_SEQUENCES = 16
_TILE_TOKENS = 16
_MULTIPLY_BF16 = ("avx512_bf16", "amx")
"""Instruction sets that compute prompts in bf16; others do in fp32."""


@dataclass(frozen=True, kw_only=True)
class LayerExperts:
    """The experts of a layer that can be streamed.

    Attributes:
        spans: where they lie.
        top_k: how many of them a token uses.
        bytes: what a place for one of them takes.
        names: of their tensors.
    """

    spans: tuple[ExpertSpans, ...]
    top_k: int
    bytes: int
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class LayerBlock:
    """An attention or a dense ffn that can be streamed.

    Attributes:
        spans: where its matrices lie.
        bytes: what it takes.
        names: of its tensors.
    """

    spans: BlockSpans
    bytes: int
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """What a model takes.

    Attributes:
        config: its configuration.
        dense_bytes: what is in memory in any case: matrices that every token reads, and all that cannot be streamed.
        layers: of each layer the experts that can; None where it has none.
        blocks: attention and ffns that can, in the order of their use.
        converted: the types of matrices that are not computed with as they are, and become bf16 as they are loaded.
        row_bytes: of the embedding, where a token's row of it is read from the file.
        number_bytes: of a number that prompts are computed with.
        cache_number_bytes: of a number of the KV cache.
    """

    config: ModelConfig
    dense_bytes: int
    layers: tuple[LayerExperts | None, ...]
    number_bytes: int
    cache_number_bytes: int
    blocks: tuple[LayerBlock, ...] = ()
    converted: tuple[str, ...] = ()
    row_bytes: int = 0

    @property
    def expert_bytes(self) -> int:
        """What all experts that can be streamed take."""
        return sum(layer.bytes * len(layer.spans) for layer in self.layers if layer is not None)

    @property
    def largest_expert(self) -> int:
        """What the largest of them takes."""
        return max((layer.bytes for layer in self.layers if layer is not None), default=0)

    @property
    def block_bytes(self) -> int:
        """What all blocks that can be streamed take."""
        return sum(block.bytes for block in self.blocks)

    def cache_bytes(self, context: int, sequences: int = 1) -> int:
        """Count the KV caches of so many sequences, once they are full."""
        positions = -(-context // _PAGE_POSITIONS) * _PAGE_POSITIONS
        per_position = sum(
            2 * attention.kv_heads * _padded(attention.head_width) for attention, _ in self._parts() if attention
        )
        return sequences * positions * per_position * self.cache_number_bytes

    def work_bytes(self, context: int, sequences: int = 1) -> int:
        """Count what steps and prompts compute in, with sequences that fill the context."""
        width, tokens = self.config.width, min(_CHUNK, context)
        # Residual stream, normed, and what a block adds; logits of a step, the decoder's and the caller's.
        shared = tokens * width * (3 * 4 + self.number_bytes)
        shared += (max(sequences, _STEP_SEQUENCES) + _STEP_SEQUENCES) * self.config.vocab_size * 4
        # Rows of the embedding, each in pages of its own.
        shared += context * sequences * (self.row_bytes + _BLOCK) if self.row_bytes else 0
        parts = self._parts()
        columns = max(width, *(self._columns(attention, ffn) for attention, ffn in parts))
        return (
            shared
            + threads() * (_THREAD_BYTES + _PANEL_BYTES * columns)
            + max(self._attention_work(attention, tokens, context, sequences) for attention, _ in parts)
            + max(self._ffn_work(ffn, tokens) for _, ffn in parts)
        )

    @staticmethod
    def _columns(attention: AttentionDescription | None, ffn: FfnDescription | MoeDescription) -> int:
        ffns = [ffn] if isinstance(ffn, FfnDescription) else [ffn.expert, *filter(None, [ffn.shared_expert])]
        return max(attention.heads * attention.head_width if attention else 0, *(part.width for part in ffns))

    def _attention_work(self, attention: AttentionDescription | None, tokens: int, context: int, sequences: int) -> int:
        if attention is None:
            return 0
        rows = 3 * attention.heads + 2 * attention.kv_heads
        seen = 2 * attention.kv_heads * _padded(context) * _padded(attention.head_width, 32)
        # A step's tasks, one for each part of the positions and each key head; their memory grows by doubling.
        tasks = min(sequences, _STEP_SEQUENCES) * (context // _PART_POSITIONS + 2) * attention.kv_heads
        queries = attention.heads // attention.kv_heads
        step = 2 * tasks * (2 * queries + 1) * (_padded(attention.head_width) + 2) * 4
        return tokens * rows * attention.head_width * 4 + seen * self.number_bytes + step

    def _ffn_work(self, ffn: FfnDescription | MoeDescription, tokens: int) -> int:
        width, number = self.config.width, self.number_bytes
        if isinstance(ffn, FfnDescription):
            return tokens * ffn.width * number
        # Of each expert the last tile may hold a single token.
        rows = _padded(tokens * ffn.top_k, _TILE_TOKENS) + ffn.experts * _TILE_TOKENS
        prompt = rows * (ffn.expert.width + width) * number + tokens * (ffn.top_k * width + ffn.experts) * 4
        step = _STEP_SEQUENCES * ffn.top_k * (ffn.expert.width + 2 * width) * 8
        shared = tokens * (ffn.shared_expert.width * number + width * 4) if ffn.shared_expert else 0
        return prompt + step + shared

    def _parts(self) -> list[tuple[AttentionDescription | None, FfnDescription | MoeDescription]]:
        return [(layer.attention, layer.ffn) for layer in describe(self.config).layers]


def model_memory(stored: GGUFModel, *, every_row: bool = False) -> ModelMemory:
    """Look at a model in a GGUF file, of which no weight is read.

    every_row: whether the whole embedding comes to be in memory, and not only rows of it.
    """
    layers = tuple(_layer_experts(stored, index) for index in range(len(stored.config.layers)))
    blocks = tuple(
        LayerBlock(spans=block.spans, bytes=sum(map(_blocks, block.spans.matrices)), names=block.names)
        for block in streamable_blocks(stored.file, stored.config)
    )
    streamable = {name for part in (*layers, *blocks) if part is not None for name in part.names}
    embedding = stored.file["token_embd.weight"]
    # Of an embedding that is not the head, too, a token reads a row, from the file.
    in_file = not (every_row or stored.config.tie_embeddings) and embedding.code in PACKED_TYPES
    is_fp32 = stored.file["blk.0.attn_q.weight"].code == F32.code
    groups = _mixed_experts(stored)
    mixed = {tensor.name for group in groups for tensor in group}
    return ModelMemory(
        config=stored.config,
        dense_bytes=_dense_bytes(stored, streamable | ({embedding.name} if in_file else set()), groups),
        layers=layers,
        blocks=blocks,
        converted=tuple(sorted({stored.file[name].type.name for name in mixed} | set(stored.converted))),
        row_bytes=embedding.size // embedding.rows if in_file else 0,
        number_bytes=2 if instruction_set() in _MULTIPLY_BF16 and not is_fp32 else 4,
        cache_number_bytes=4 if is_fp32 else 2,
    )


def _layer_experts(stored: GGUFModel, index: int) -> LayerExperts | None:
    layer, found = stored.config.layers[index].feed_forward, streamable_experts(stored.file, stored.config, index)
    if found is None or not isinstance(layer, MoEConfig):
        return None
    place = max(sum(map(_blocks, expert)) for expert in found.spans)
    return LayerExperts(spans=found.spans, top_k=layer.router.experts_per_token, bytes=place, names=found.names)


def _dense_bytes(stored: GGUFModel, elsewhere: set[str], mixed: list[list[GGUFTensor]]) -> int:
    """Count what is in memory in any case; while a matrix is converted, it is there twice, and in fp32 in part."""
    taken = 0
    converted = [sum(2 * tensor.rows * tensor.columns for tensor in group) for group in mixed]
    in_groups = {tensor.name for group in mixed for tensor in group}
    for tensor in stored.file.tensors.values():
        if tensor.name in elsewhere or tensor.name in in_groups:
            continue
        if tensor.code in PACKED_TYPES:
            taken += tensor.size
        else:
            converted.append(2 * tensor.rows * tensor.columns)
    return taken + sum(converted) + 2 * max(converted, default=0)


def _mixed_experts(stored: GGUFModel) -> list[list[GGUFTensor]]:
    """Find the single experts of several types that make one matrix, which are put on end in bf16."""
    groups = [
        expert_tensors(stored.file, f"blk.{index}.{part}", layer.feed_forward.experts)
        for index, layer in enumerate(stored.config.layers)
        if isinstance(layer.feed_forward, MoEConfig)
        for part in ("ffn_gate", "ffn_up", "ffn_down")
    ]
    return [tensors for tensors in groups if len({tensor.code for tensor in tensors}) > 1]


def _blocks(span: FileSpan | None) -> int:
    if span is None:
        return 0
    begin = span.offset // _BLOCK * _BLOCK
    return -(-(span.offset + span.size - begin) // _BLOCK) * _BLOCK


def _padded(count: int, multiple: int = 16) -> int:
    return -(-count // multiple) * multiple
