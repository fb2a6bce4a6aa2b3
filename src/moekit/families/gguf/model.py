"""A decoder that lies in a GGUF file: its configuration, and its weights where they are.

R rows, E experts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile
from moekit.checkpoint.layout import Stored
from moekit.config import AnyAttentionConfig, AttentionConfig, DenseConfig, ModelConfig, MoEConfig
from moekit.core.errors import MoekitError
from moekit.families.gguf.architectures import ARCHITECTURES, Contents, read_config
from moekit.families.gguf.rope_metadata import FACTORS
from moekit.families.gguf.tensors import layout, norm_names
from moekit.kernels.native.weights import (
    AttentionWeights,
    DecoderWeights,
    LayerWeights,
    MoEWeights,
    NetworkWeights,
)
from moekit.kernels.packed import BF16, Numbers, PackedMatrix, dequantize

# Old files hold what follows from the metadata.
_IGNORED = (FACTORS, ".rope_freqs.weight", ".attn_rot_embd.weight")


class GGUFModel:
    """A model in a GGUF file; no weight is read.

    Attributes:
        config: our configuration of it.
        layout: its tensors as views of our parameters.

    Raises:
        MoekitError: where its architecture is not known or its tensors are not those that its metadata describes.
    """

    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        shapes = {name: tensor.shape for name, tensor in self.file.tensors.items()}
        factors = self.file.numbers(FACTORS).flatten().tolist() if FACTORS in self.file else None
        self.config: ModelConfig = read_config(self.file.metadata, Contents(shapes=shapes, rope_factors=factors))
        self.architecture = ARCHITECTURES[self.file.metadata.get_as(str, "general.architecture")]
        _check_number_of_layers(self.file, len(self.config.layers))
        self.layout: list[Stored] = layout(self.architecture, self.config, lambda name: name in self.file)
        self._check_names()

    @property
    def converted(self) -> dict[str, list[str]]:
        """Names of tensors by their type, of those types that are not computed with as they are."""
        found: dict[str, list[str]] = {}
        for tensor in self.file.tensors.values():
            if tensor.code not in PACKED_TYPES and not tensor.name.endswith(_IGNORED):
                found.setdefault(tensor.type.name, []).append(tensor.name)
        return found

    def weights(self) -> DecoderWeights:
        """Give all weights; raises MoekitError where a shape is not what the metadata says.

        Matrices are views of the file, but for those of `converted` types, which become copies in bf16, and single
        experts, which are put on end.
        """
        width, vocab = self.config.width, self.config.vocab_size
        embedding = self._matrix("token_embd.weight", vocab, width)
        head = embedding if self.config.tie_embeddings else self._matrix("output.weight", vocab, width)
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(self._layer(index) for index in range(len(self.config.layers))),
            norm_D=self._vector("output_norm.weight", width),
            head=head,
            interleaved=self.architecture.interleaved,
        )

    def _layer(self, index: int) -> LayerWeights:
        name, width, layer = f"blk.{index}", self.config.width, self.config.layers[index]
        part = layer.feed_forward
        norms = {
            ours: self._vector(f"{name}.{theirs}.weight", width) for theirs, ours in norm_names(layer.block).items()
        }
        return LayerWeights(
            attention_norm_D=norms["attention_norm"],
            attention=self._attention(name, layer.attention),
            feed_forward_norm_D=norms["feed_forward_norm"],
            feed_forward=self._dense(name, "", part) if isinstance(part, DenseConfig) else self._mixture(name, part),
            attention_after_norm_D=norms.get("attention_after_norm"),
            feed_forward_after_norm_D=norms.get("feed_forward_after_norm"),
        )

    def _attention(self, name: str, attention: AnyAttentionConfig) -> AttentionWeights:
        width = self.config.width
        assert isinstance(attention, AttentionConfig)
        queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
        normed = {"none": (0, 0), "head": (attention.head_width,) * 2, "all": (queries, keys)}[attention.query_key_norm]
        bias = attention.qkv_bias
        return AttentionWeights(
            query=self._matrix(f"{name}.attn_q.weight", queries, width),
            key=self._matrix(f"{name}.attn_k.weight", keys, width),
            value=self._matrix(f"{name}.attn_v.weight", keys, width),
            output=self._matrix(f"{name}.attn_output.weight", width, queries),
            query_bias=self._vector(f"{name}.attn_q.bias", queries) if bias else None,
            key_bias=self._vector(f"{name}.attn_k.bias", keys) if bias else None,
            value_bias=self._vector(f"{name}.attn_v.bias", keys) if bias else None,
            output_bias=self._vector(f"{name}.attn_output.bias", width) if attention.output_bias else None,
            query_norm=self._vector(f"{name}.attn_q_norm.weight", normed[0]) if normed[0] else None,
            key_norm=self._vector(f"{name}.attn_k_norm.weight", normed[1]) if normed[1] else None,
        )

    def _dense(self, name: str, suffix: str, layer: DenseConfig) -> NetworkWeights:
        if layer.bias:
            raise MoekitError(
                f"{self.file.path}: the feed-forward networks have biases, which only the torch path adds."
            )
        width = self.config.width
        return NetworkWeights(
            gate=self._matrix(f"{name}.ffn_gate{suffix}.weight", layer.width, width),
            up=self._matrix(f"{name}.ffn_up{suffix}.weight", layer.width, width),
            down=self._matrix(f"{name}.ffn_down{suffix}.weight", width, layer.width),
        )

    def _mixture(self, name: str, layer: MoEConfig) -> MoEWeights:
        width, hidden = self.config.width, layer.expert_width
        gated = layer.branch == "gated_shared"
        return MoEWeights(
            router=self._matrix(f"{name}.ffn_gate_inp.weight", layer.experts, width),
            experts=NetworkWeights(
                gate=self._experts(f"{name}.ffn_gate", layer.experts, hidden, width),
                up=self._experts(f"{name}.ffn_up", layer.experts, hidden, width),
                down=self._experts(f"{name}.ffn_down", layer.experts, width, hidden),
            ),
            shared_expert=self._dense(name, "_shexp", layer.dense_branch) if gated else None,
            shared_expert_gate_D=self._vector(f"{name}.ffn_gate_inp_shexp.weight", width) if gated else None,
        )

    def _experts(self, name: str, experts: int, rows: int, columns: int) -> PackedMatrix:
        """Give the experts' matrices with their rows on end."""
        if f"{name}_exps.weight" in self.file:
            return self._packed(f"{name}_exps.weight", (experts, rows, columns))
        return _on_end([self._matrix(f"{name}.{expert}.weight", rows, columns) for expert in range(experts)])

    def _matrix(self, name: str, rows: int, columns: int) -> PackedMatrix:
        return self._packed(name, (rows, columns))

    def _packed(self, name: str, shape: tuple[int, ...]) -> PackedMatrix:
        self._check_shape(name, shape)
        if self.file[name].code in PACKED_TYPES:
            return self.file.packed(name)
        return _on_end([_as_bf16(rows_RC) for _, rows_RC in self.file.chunks(name)])

    def _vector(self, name: str, count: int) -> Numbers:
        self._check_shape(name, (count,))
        return self.file.numbers(name)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.file[name].shape != shape:
            raise wrong_shape(self.file, name, shape)

    def _check_names(self) -> None:
        names = {entry.name for entry in self.layout}
        for name in names:
            self.file[name]  # raises where it is missing
        extra = [name for name in self.file.tensors if name not in names and not name.endswith(_IGNORED)]
        if extra:
            raise MoekitError(
                f"{self.file.path} holds the tensor {extra[0]!r}, which {self.architecture.name} has no place for."
            )


def wrong_shape(file: GGUFFile, name: str, shape: Sequence[int]) -> MoekitError:
    """Make the error for a tensor that is not of the shape that the metadata asks for."""
    return MoekitError(
        f"Tensor {name!r} in {file.path} has the shape {list(file[name].shape)}, the model needs {list(shape)}."
    )


def _on_end(parts: Sequence[PackedMatrix]) -> PackedMatrix:
    """Copy matrices of one width one under the other; those of several types become bf16."""
    first = parts[0]
    if any(part.type is not first.type for part in parts):
        parts = [_as_bf16(dequantize(part)) for part in parts]
    return PackedMatrix(np.concatenate([part.data_RB for part in parts]), parts[0].type, first.columns)


def _as_bf16(numbers_RC: Numbers) -> PackedMatrix:
    """Round to bf16, by torch, which files of nothing but types that are computed with never wait for."""
    import torch

    from moekit.kernels.packed.quantize_blocks import quantize

    return quantize(torch.from_numpy(numbers_RC), BF16)


def _check_number_of_layers(file: GGUFFile, layers: int) -> None:
    """Find at once a count without layers behind it: a layer's tensors are looked for by name."""
    if f"blk.{layers - 1}.attn_norm.weight" not in file:
        raise MoekitError(f"{file.path} lacks the tensor 'blk.{layers - 1}.attn_norm.weight'; it is incomplete.")
