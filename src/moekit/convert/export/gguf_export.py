"""A decoder's folder as a GGUF file, quantised on the way: one piece of a tensor at a time.

What stays finer than the type that is asked for, as llama.cpp has it by default: norms, biases and routers are f32; the
head, or the embedding where it is also the head, is q6_k for q4_0 and q4_k. Matrices whose rows are not whole blocks
become q8_0, or f16 where not even that fits.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moekit.checkpoint.gguf import GGUFFile, OutputTensor, Written, check_free, gguf_bytes, write_gguf
from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import pairs, pieces, stored_shape
from moekit.convert.conversion import Refused
from moekit.core.errors import MoekitError
from moekit.core.progress import Progress, Task, no_progress
from moekit.data.gguf_vocabulary import tokenizer_metadata
from moekit.data.tokenizers import TOKENIZER
from moekit.families.gguf import FACTORS, describe, factors_of, layout
from moekit.inference.packed_weights import type_for
from moekit.kernels.packed import BF16, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0, BlockType, Bytes
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models.stored_model import StoredModel, row_width

# llama.h's llama_ftype, by which other programs name the whole file.
_FILE_TYPES = {F32: 0, F16: 1, Q4_0: 2, Q8_0: 7, Q4_K: 14, Q6_K: 18, BF16: 32}
_QUANTIZATION_VERSION = 2
_PIECE_BYTES = 16 << 20


class QuantizationPlan(BaseModel):
    """What will be written, found without reading a weight.

    tensors: how many of each type. bits_per_weight: of all tensors together. notes: what a user should know of the
    result, a sentence each. problems: what stands in the way.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    out: str
    type: str
    architecture: str
    params_total: int
    output_bytes: int
    bits_per_weight: float
    tensors: dict[str, int]
    notes: list[str]
    problems: list[str]


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A model and the file that it becomes; `run` writes it."""

    source: StoredModel
    type: BlockType
    architecture: str
    metadata: dict[str, Written]
    tensors: list[OutputTensor]
    notes: list[str]

    def plan(self, out: Path) -> QuantizationPlan:
        """Say what writing it to `out` takes, and what stands in the way."""
        needed = gguf_bytes(self.architecture, self.metadata, self.tensors)
        numbers = sum(torch.Size(tensor.shape).numel() for tensor in self.tensors)
        problems = []
        try:
            check_free(out, needed)
        except MoekitError as error:
            problems.append(str(error))
        return QuantizationPlan(
            source=str(self.source.folder),
            out=str(out),
            type=self.type.name,
            architecture=self.architecture,
            params_total=sum(shape.numel() for shape in self.source.shapes.values()),
            output_bytes=needed,
            bits_per_weight=8 * sum(tensor.size for tensor in self.tensors) / numbers,
            tensors=dict(Counter(tensor.type.name for tensor in self.tensors)),
            notes=self.notes,
            problems=problems,
        )

    def run(self, out: Path, progress: Progress = no_progress) -> QuantizationPlan:
        """Write the file, all of it or nothing.

        Raises UsageError where `out` is taken, MoekitError where the disk is full or a weight is not a finite number.
        """
        plan = self.plan(out)
        total = sum(tensor.size for tensor in self.tensors)
        with Task(progress, f"Writing {out}", total=total, unit="bytes") as task:
            write_gguf(out, self.architecture, self.metadata, self.tensors, task.advance)
        return plan

    def verify(self, out: Path) -> int:
        """Compare every tensor of the file `out` with the model's, quantised again, byte by byte; count them.

        Raises MoekitError naming the first that is something else.
        """
        file = GGUFFile(out)
        for tensor in self.tensors:
            at, found = 0, file.bytes_of(tensor.name) if tensor.name in file.tensors else np.zeros((0, 0), np.uint8)
            for rows_RB in tensor.make():
                end = at + len(rows_RB)
                if not np.array_equal(found[at:end], rows_RB):
                    raise MoekitError(f"{out}: {tensor.name!r} is not what quantising {self.source.folder} gives.")
                at = end
        return len(self.tensors)


def plan_quantization(folder: Path, kind: BlockType) -> Quantization:
    """Plan what quantising the model in `folder` makes, with every error that can be known before a weight is read.

    Raises UsageError where GGUF has no architecture or no tokenizer for the model, MoekitError where it is damaged.
    """
    source = StoredModel(folder)
    try:
        architecture, described = describe(source.config)
    except ValueError as error:
        raise Refused([f"{folder} cannot become a GGUF file: {error}."]) from error
    metadata: dict[str, Written] = {
        "general.type": "model",
        "general.name": folder.resolve().name,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **described,
        **tokenizer_metadata(folder, source.config.vocab_size),
    }
    tensors = [_tensor(source, entry, kind) for entry in layout(architecture, source.config)]
    factors = factors_of(source.config)
    if factors is not None:
        numbers_1C = torch.tensor([factors])
        make = partial(_packed, FACTORS, F32, lambda: iter([numbers_1C]))
        tensors.insert(1, OutputTensor(name=FACTORS, type=F32, shape=(len(factors),), make=make))
    return Quantization(
        source=source,
        type=kind,
        architecture=architecture.name,
        metadata=metadata,
        tensors=tensors,
        notes=_notes(source, kind, tensors),
    )


def _tensor(source: StoredModel, entry: Stored, kind: BlockType) -> OutputTensor:
    shape = stored_shape(entry, source.shapes)
    found = _type_of(entry.name, shape, kind, tied=source.config.tie_embeddings)
    make = partial(_packed, entry.name, found, partial(_rows, source, entry))
    return OutputTensor(name=entry.name, type=found, shape=shape, make=make)


def _type_of(name: str, shape: tuple[int, ...], kind: BlockType, *, tied: bool) -> BlockType:
    """Choose the type that a tensor is written in."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return F32
    is_head = name == "output.weight" or (tied and name == "token_embd.weight")
    return type_for(kind, shape[-1], is_head=is_head)


def _rows(source: StoredModel, entry: Stored) -> Iterator[Tensor]:
    """Read the tensor's rows as they are stored, (rows, columns), fp32, some at a time, in the order of the file."""
    (pair,) = pairs(entry, source.shapes)
    (part,) = entry.parts
    columns = stored_shape(entry, source.shapes)[-1]
    width = row_width(source.shapes[part.ours])
    for piece in pieces(pair, 4, _PIECE_BYTES):
        offset = int(piece.ours.storage_offset())
        last = offset + sum((n - 1) * step for n, step in zip(piece.ours.shape, piece.ours.stride(), strict=True))
        begin = offset // width
        held = source.rows(part.ours, begin, last // width + 1)
        strided = held.flatten().as_strided(piece.ours.shape, piece.ours.stride(), offset - begin * width)
        yield strided.float().add(entry.plus).reshape(-1, columns)


def _packed(name: str, kind: BlockType, rows: Callable[[], Iterator[Tensor]]) -> Iterator[Bytes]:
    for rows_RC in rows():
        if not rows_RC.isfinite().all():
            raise MoekitError(f"{name!r} holds numbers that are not finite; the model is damaged.")
        yield quantize(rows_RC, kind).data_RB


def _notes(source: StoredModel, kind: BlockType, tensors: list[OutputTensor]) -> list[str]:
    found = []
    other = [
        tensor
        for tensor in tensors
        if len(tensor.shape) > 1 and tensor.shape[-1] % kind.numbers and not tensor.name.endswith("ffn_gate_inp.weight")
    ]
    if other:
        first = other[0]
        found.append(
            f"Rows of {first.name} ({first.shape[-1]} numbers) are not whole blocks of {kind.name}, so "
            f"{len(other)} of {len(tensors)} tensors are {first.type.name}."
        )
    windows = {layer.attention.window for layer in source.config.layers}
    window = windows.pop() if len(windows) == 1 else None
    if window is not None and window < source.config.context:
        found.append(f"llama.cpp does not know the window of {window:,} tokens in this architecture; moekit does.")
    if not (source.folder / TOKENIZER).is_file():
        found.append(f"{source.folder} has no {TOKENIZER}, so the file has no tokenizer.")
    return found
