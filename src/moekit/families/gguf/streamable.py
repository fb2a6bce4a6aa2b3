"""The parts of a decoder in a GGUF file that can stay on disk, and where they lie.

Only matrices of types that are computed with as they are can: others become bf16 as they are loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile, GGUFTensor
from moekit.config import DenseConfig, ModelConfig, MoEConfig
from moekit.kernels.native.block_streaming import BlockKind, BlockSpans
from moekit.kernels.native.direct_reading import FileSpan
from moekit.kernels.native.expert_streaming import ExpertSpans

_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_FFN = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, kw_only=True)
class StreamableExperts:
    """The experts of a layer. names: of their tensors; spans: where each expert's matrices lie."""

    names: frozenset[str]
    spans: tuple[ExpertSpans, ...]


@dataclass(frozen=True, kw_only=True)
class StreamableBlock:
    """The attention or the dense ffn of a layer. names: of its tensors; spans: where they lie."""

    names: frozenset[str]
    spans: BlockSpans


def streamable_experts(file: GGUFFile, config: ModelConfig, index: int) -> StreamableExperts | None:
    """Find the experts of a layer; None where it has none, or they cannot stay on disk."""
    layer = config.layers[index].feed_forward
    if not isinstance(layer, MoEConfig):
        return None
    names: list[str] = []
    matrices: list[list[FileSpan]] = []
    for part in _FFN:
        tensors = expert_tensors(file, f"blk.{index}.{part}", layer.experts)
        if not _computed_as_they_are(tensors):
            return None
        names += [tensor.name for tensor in tensors]
        matrices.append([span for tensor in tensors for span in _split(tensor, layer.experts // len(tensors))])
    gates, ups, downs = matrices
    return StreamableExperts(names=frozenset(names), spans=tuple(zip(gates, ups, downs, strict=True)))


def streamable_blocks(file: GGUFFile, config: ModelConfig) -> list[StreamableBlock]:
    """Find the blocks that can stay on disk, in the order of their use."""
    found = []
    for index, layer in enumerate(config.layers):
        kinds: list[tuple[BlockKind, tuple[str, ...]]] = [("attention", _ATTENTION)]
        if isinstance(layer.feed_forward, DenseConfig):
            kinds.append(("ffn", _FFN))
        for kind, parts in kinds:
            tensors = [file[f"blk.{index}.{part}.weight"] for part in parts]
            if all(_computed_as_they_are([tensor]) for tensor in tensors):
                spans = tuple(FileSpan(tensor.start, tensor.size, tensor.part) for tensor in tensors)
                names = frozenset(tensor.name for tensor in tensors)
                found.append(StreamableBlock(names=names, spans=BlockSpans(layer=index, kind=kind, matrices=spans)))
    return found


def expert_tensors(file: GGUFFile, name: str, experts: int) -> list[GGUFTensor]:
    """Give the tensors that hold one matrix of each expert: one of all of them, or as old files have it one of each."""
    stacked = f"{name}_exps.weight"
    names = [stacked] if stacked in file else [f"{name}.{expert}.weight" for expert in range(experts)]
    return [file[one] for one in names]


def _split(tensor: GGUFTensor, parts: int) -> list[FileSpan]:
    size = tensor.size // parts
    return [FileSpan(tensor.start + part * size, size, tensor.part) for part in range(parts)]


def _computed_as_they_are(tensors: Sequence[GGUFTensor]) -> bool:
    """Tell whether tensors that make one matrix are of one type that is computed with."""
    codes = {tensor.code for tensor in tensors}
    return len(codes) == 1 and codes <= PACKED_TYPES.keys()
