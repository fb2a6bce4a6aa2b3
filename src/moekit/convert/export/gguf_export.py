"""A decoder's folder as a GGUF file, quantised on the way: one piece of a tensor at a time.

What stays finer than the type that is asked for, as llama.cpp has it by default: norms, biases and routers are f32; the
head, or the embedding where it is also the head, is q6_k where the others have less. Matrices whose rows are not whole
blocks become q8_0, or f16 where not even that fits. A tensor with a number too large for its type becomes bf16, or f32.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moekit.checkpoint.gguf import GGUFFile, OutputTensor, Written, check_free, gguf_bytes, is_gguf, write_gguf
from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import pairs, pieces, stored_shape
from moekit.config import AttentionConfig, ModelConfig, MoEConfig
from moekit.convert.conversion import Refused
from moekit.convert.export.gguf_source import kept_metadata, requantized_note
from moekit.convert.export.tokenizer_proof import prove_tokenizer
from moekit.core.errors import MoekitError
from moekit.core.progress import Progress, Task, no_progress
from moekit.data.gguf_vocabulary import chat_template_metadata, tokenizer_metadata
from moekit.data.tokenizers import TOKENIZER, FileTokenizer
from moekit.families.gguf import FACTORS, describe, factors_of, layout
from moekit.inference.packed_weights import type_for
from moekit.kernels.packed import BF16, BLOCK_TYPES, F32, BlockType, Bytes
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.kernels.packed.type_mixes import PURE, Shape, TypeMix
from moekit.models.stored_model import StoredModel, row_width

_QUANTIZATION_VERSION = 2
_PIECE_BYTES = 16 << 20
_TOKENIZER = "tokenizer.ggml.model"
_BUFFERS = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias", "position_ids")


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


class _TooLarge(MoekitError):
    """A tensor has a number that its type cannot hold."""


@dataclass(kw_only=True)
class Quantization:
    """A model and the file that it becomes; `run` writes it.

    What a number is too large for becomes known with the weights: `run` then changes the types of such tensors.
    """

    source: StoredModel
    tokenizer: FileTokenizer | None
    type: TypeMix
    architecture: str
    metadata: dict[str, Written]
    matrices: "list[_Matrix]"
    notes: list[str]

    @property
    def tensors(self) -> list[OutputTensor]:
        """The tensors of the file, in their order."""
        return [matrix.packed(matrix.type) for matrix in self.matrices]

    def plan(self, out: Path) -> QuantizationPlan:
        """Say what writing it to `out` takes, and what stands in the way."""
        problems = []
        try:
            check_free(out, gguf_bytes(self.architecture, self.metadata, self.tensors))
        except MoekitError as error:
            problems.append(str(error))
        return self._described(out, problems)

    def _described(self, out: Path, problems: list[str]) -> QuantizationPlan:
        tensors = self.tensors
        numbers = sum(torch.Size(tensor.shape).numel() for tensor in tensors)
        return QuantizationPlan(
            source=str(self.source.folder),
            out=str(out),
            type=self.type.name,
            architecture=self.architecture,
            params_total=sum(shape.numel() for shape in self.source.shapes.values()),
            output_bytes=gguf_bytes(self.architecture, self.metadata, tensors),
            bits_per_weight=8 * sum(tensor.size for tensor in tensors) / numbers,
            tensors=dict(Counter(tensor.type.name for tensor in tensors)),
            notes=self.notes,
            problems=problems,
        )

    def run(self, out: Path, progress: Progress = no_progress) -> QuantizationPlan:
        """Write the file, all of it or nothing; before it gets its name, its tokenizer is held against the folder's.

        Raises UsageError where `out` is taken, MoekitError where the disk is full or a weight is not a finite number.
        """
        try:
            self._write(out, progress)
        except _TooLarge:
            self._widen()
            self._write(out, progress)
        return self._described(out, [])

    def _write(self, out: Path, progress: Progress) -> None:
        total = sum(tensor.size for tensor in self.tensors)
        with Task(progress, f"Writing {out}", total=total, unit="bytes") as task:
            write_gguf(out, self.architecture, self.metadata, self.tensors, task.advance, self._prove)

    def _prove(self, file: Path) -> None:
        if self.tokenizer is not None:
            prove_tokenizer(self.tokenizer, GGUFFile(file).metadata)

    def _widen(self) -> None:
        """Give tensors with numbers that are too large for their types another type, and say so."""
        for index, matrix in enumerate(self.matrices):
            held = next(kind for kind in (matrix.type, BF16, F32) if matrix.fits(kind))
            if held is not matrix.type:
                self.matrices[index] = replace(matrix, type=held)
                self.notes.append(
                    f"{matrix.name} holds numbers that are too large for {matrix.type.name}, so it is {held.name}."
                )

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


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """A tensor of the file: where its rows come from, (rows, columns) in fp32, some at a time, and its type."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    rows: Callable[[], Iterator[Tensor]]

    def packed(self, kind: BlockType) -> OutputTensor:
        """Give the tensor, packed as it is written."""
        return OutputTensor(name=self.name, type=kind, shape=self.shape, make=partial(self._pieces, kind))

    def fits(self, kind: BlockType) -> bool:
        """Tell whether the type can hold all numbers, by packing them."""
        try:
            for _ in self._pieces(kind):
                pass
        except _TooLarge:
            return False
        return True

    def _pieces(self, kind: BlockType) -> Iterator[Bytes]:
        for rows_RC in self.rows():
            if not rows_RC.isfinite().all():
                raise MoekitError(f"{self.name!r} holds numbers that are not finite; the model is damaged.")
            try:
                yield quantize(rows_RC, kind).data_RB
            except OverflowError as error:
                raise _TooLarge(f"{self.name!r} holds numbers that {kind.name} cannot.") from error


def plan_quantization(folder: Path, kind: BlockType | TypeMix) -> Quantization:
    """Plan what quantising the model in `folder`, or in a GGUF file, makes; no weight is read.

    kind: the type of all matrices but the head, or what a mix of types chooses for each.

    Raises UsageError where GGUF has no architecture or no tokenizer for the model, MoekitError where it is damaged.
    """
    source, mix = StoredModel(folder), kind if isinstance(kind, TypeMix) else PURE[kind]
    try:
        architecture, described = describe(source.config)
    except ValueError as error:
        raise Refused([f"{folder} cannot become a GGUF file: {error}; it runs as it is."]) from error
    tokenizer = FileTokenizer(folder, source.config.vocab_size) if (folder / TOKENIZER).is_file() else None
    metadata: dict[str, Written] = {
        "general.type": "model",
        "general.name": folder.resolve().name,
        "general.file_type": mix.file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
        **described,
        **_tokenizer_metadata(folder, tokenizer, source.config.vocab_size),
    }
    matrices = [_matrix(source, entry, mix) for entry in layout(architecture, source.config)]
    factors = factors_of(source.config)
    if factors is not None:
        numbers_1C = torch.tensor([factors])
        matrices.insert(1, _Matrix(name=FACTORS, type=F32, shape=(len(factors),), rows=lambda: iter([numbers_1C])))
    notes = _notes(source, mix, matrices)
    if tokenizer is not None:
        notes += _proven(tokenizer, architecture.name, metadata)
    return Quantization(
        source=source,
        tokenizer=tokenizer,
        type=mix,
        architecture=architecture.name,
        metadata=metadata,
        matrices=matrices,
        notes=notes,
    )


def _tokenizer_metadata(folder: Path, tokenizer: FileTokenizer | None, vocab_size: int) -> dict[str, Written]:
    if is_gguf(folder):
        return kept_metadata(folder)
    tokens = {_TOKENIZER: "no_vocab"} if tokenizer is None else tokenizer_metadata(tokenizer, vocab_size)
    return {**tokens, **chat_template_metadata(folder)}


def _proven(tokenizer: FileTokenizer, architecture: str, metadata: dict[str, Written]) -> list[str]:
    """Hold the tokenizer of a file without tensors against the folder's; what other programs differ in."""
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "tokenizer.gguf"
        write_gguf(file, architecture, metadata, [])
        return prove_tokenizer(tokenizer, GGUFFile(file).metadata)


def _matrix(source: StoredModel, entry: Stored, mix: TypeMix) -> _Matrix:
    shape = stored_shape(entry, source.shapes)
    return _Matrix(
        name=entry.name,
        type=_type_of(entry.name, shape, mix, source.config),
        shape=shape,
        rows=partial(_rows, source, entry),
    )


def _type_of(name: str, shape: tuple[int, ...], mix: TypeMix, config: ModelConfig) -> BlockType:
    """Choose the type that a tensor is written in."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return F32
    is_head = name == "output.weight" or (config.tie_embeddings and name == "token_embd.weight")
    wanted = mix.base if is_head else mix.type_of(name, _shape_of(config))
    return type_for(wanted, shape[-1], is_head=is_head)


def _shape_of(config: ModelConfig) -> Shape:
    mixtures = [layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, MoEConfig)]
    attention = config.layers[0].attention
    return Shape(
        layers=len(config.layers),
        experts=max((mixture.experts for mixture in mixtures), default=0),
        grouped=isinstance(attention, AttentionConfig) and attention.kv_heads < attention.heads,
    )


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


def _notes(source: StoredModel, mix: TypeMix, tensors: list[_Matrix]) -> list[str]:
    kind = mix.base
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
    unpacked = " and ".join(sorted({tensor.type.name for tensor in tensors if tensor.type not in BLOCK_TYPES}))
    if unpacked:
        found.append(f"moekit unpacks {unpacked} to bf16 when it loads the file; llama.cpp computes with it.")
    windows = {layer.attention.window for layer in source.config.layers}
    window = windows.pop() if len(windows) == 1 else None
    if window is not None and window < source.config.context:
        found.append(f"llama.cpp does not know the window of {window:,} tokens in this architecture; moekit does.")
    if is_gguf(source.folder):
        return found + requantized_note(source.folder)
    if not (source.folder / TOKENIZER).is_file():
        found.append(f"{source.folder} has no {TOKENIZER}, so the file has no tokenizer.")
    return found + _left_out(source)


def _left_out(source: StoredModel) -> list[str]:
    """Name the stored tensors that are not carried over; buffers that follow from the configuration carry nothing."""
    used = {entry.name for entry in source.layout}
    names = [name for name in source.tensors if name not in used and not name.endswith(_BUFFERS)]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"The GGUF file does not hold {names[0]!r}{more}, which the model computes without."]
