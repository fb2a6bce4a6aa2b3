"""The weights of a decoder in a GGUF file, as the native decoder takes them.

R rows, E experts, B bytes of a row.
"""

from collections.abc import Callable, Sequence

import numpy as np

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile, GGUFTensor
from moekit.config import AnyAttentionConfig, AttentionConfig, DenseConfig, ModelConfig, MoEConfig
from moekit.core.errors import MoekitError
from moekit.families.gguf.streamable import expert_tensors
from moekit.families.gguf.tensors import norm_names
from moekit.kernels.native.weights import (
    AttentionWeights,
    DecoderWeights,
    LayerWeights,
    MoEWeights,
    NetworkWeights,
)
from moekit.kernels.packed import BF16, Bytes, Numbers, PackedMatrix, dequantize

TensorSource = Callable[[Sequence[GGUFTensor]], Bytes]
"""What gives the bytes of tensors of one type and width, one under the other: (rows, bytes of a row)."""


class GGUFWeights:
    """Make the parts of a decoder's weights; `GGUFModel.weights` says what the source is."""

    def __init__(self, file: GGUFFile, config: ModelConfig, source: TensorSource) -> None:
        self.file, self.config, self._source = file, config, source

    def all(self, *, interleaved: bool) -> DecoderWeights:
        """Give all of them."""
        width, vocab = self.config.width, self.config.vocab_size
        embedding = self._matrix("token_embd.weight", vocab, width)
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(self._layer(index) for index in range(len(self.config.layers))),
            norm_D=self._vector("output_norm.weight", width),
            head=embedding if self.config.tie_embeddings else self._matrix("output.weight", vocab, width),
            interleaved=interleaved,
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
            feed_forward=(self._dense(name, "", part) if isinstance(part, DenseConfig) else self._mixture(index, part)),
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

    def _mixture(self, index: int, layer: MoEConfig) -> MoEWeights:
        name, width, hidden = f"blk.{index}", self.config.width, layer.expert_width
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
        tensors = expert_tensors(self.file, name, experts)
        stacked = tensors[0].name.endswith("_exps.weight")
        for tensor in tensors:
            self._check_shape(tensor.name, (experts, rows, columns) if stacked else (rows, columns))
        return self._packed(tensors)

    def _matrix(self, name: str, rows: int, columns: int) -> PackedMatrix:
        self._check_shape(name, (rows, columns))
        return self._packed([self.file[name]])

    def _packed(self, tensors: Sequence[GGUFTensor]) -> PackedMatrix:
        """Make a matrix of tensors, one under the other; in bf16 where their types differ or are converted."""
        first = tensors[0]
        if {tensor.code for tensor in tensors} == {first.code} <= PACKED_TYPES.keys():
            return PackedMatrix(self._source(tensors), PACKED_TYPES[first.code], first.columns)
        parts = [_as_bf16(rows_RC) for tensor in tensors for _, rows_RC in self.file.chunks(tensor.name)]
        return PackedMatrix(np.concatenate([part.data_RB for part in parts]), BF16, first.columns)

    def _vector(self, name: str, count: int) -> Numbers:
        self._check_shape(name, (count,))
        tensor = self.file[name]
        if tensor.code not in PACKED_TYPES:
            return self.file.numbers(name)
        return dequantize(PackedMatrix(self._source([tensor]), PACKED_TYPES[tensor.code], count)).reshape(count)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.file[name].shape != shape:
            raise wrong_shape(self.file, name, shape)


def wrong_shape(file: GGUFFile, name: str, shape: Sequence[int]) -> MoekitError:
    """Make the error for a tensor that is not of the shape that the metadata asks for."""
    return MoekitError(
        f"Tensor {name!r} in {file.path} has the shape {list(file[name].shape)}, the model needs {list(shape)}."
    )


def _as_bf16(numbers_RC: Numbers) -> PackedMatrix:
    """Round to bf16, by torch, which files of nothing but types that are computed with never wait for."""
    import torch

    from moekit.kernels.packed.quantize_blocks import quantize

    return quantize(torch.from_numpy(numbers_RC), BF16)
