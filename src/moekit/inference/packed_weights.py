"""From a decoder's parameters to the packed weights that the native engine computes with.

E experts, F hidden width, D model width, R rows.
"""

from typing import cast

import torch
from torch import Tensor, nn

from moekit.config import AttentionConfig
from moekit.core.errors import MoekitError
from moekit.kernels.native.weights import AttentionWeights, DecoderWeights, LayerWeights, MoEWeights, NetworkWeights
from moekit.kernels.packed import BF16, F16, F32, Q6_K, Q8_0, BlockType, Numbers, PackedMatrix
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder
from moekit.models.decoder import DecoderLayer
from moekit.moe import MoELayer
from moekit.nn import Attention, FeedForward, RMSNorm

_AS_STORED = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}


def packed_weights(model: Decoder, kind: BlockType | None = None) -> DecoderWeights:
    """Give the weights of a decoder of grouped attention and RMS norms, in the types they have.

    Matrices are the parameters' own memory, except the gates and ups of experts: they alternate in the parameter and
    are copied, layer by layer, which uses up the model. kind: matrices are packed into what `type_for` makes of it, and
    the parameters of a layer are freed once it is packed; routers stay as they are. Raises MoekitError where a weight
    that is to be packed is not a finite number.
    """
    if kind is not None:
        _check_finite(model)
    packing = _Packing(kind)
    tied = model.head.weight is model.embedding.weight
    embedding = packing.matrix(model.embedding.weight, is_head=tied)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(packing.layer(cast(DecoderLayer, layer)) for layer in model.layers),
        norm_D=_weight(model.norm),
        head=embedding if tied else packing.matrix(model.head.weight, is_head=True),
    )


def type_for(kind: BlockType, columns: int, *, is_head: bool = False) -> BlockType:
    """Choose what a matrix is packed into where `kind` is asked for.

    As in llama.cpp the head of a model of fewer bits is q6_k. Rows that are not whole blocks become q8_0, or f16 where
    not even that fits.
    """
    wanted = Q6_K if is_head and kind.bits < Q6_K.bits else kind
    return next(usable for usable in (wanted, Q8_0, F16) if columns % usable.numbers == 0)


class _Packing:
    def __init__(self, kind: BlockType | None) -> None:
        self.kind = kind

    def matrix(self, numbers_RC: Tensor, *, is_head: bool = False) -> PackedMatrix:
        """Pack a matrix as it is, or quantised; to bf16 where a number is too large for the type."""
        numbers_RC = numbers_RC.detach()
        if self.kind is None:
            return _as_stored(numbers_RC)
        try:
            return quantize(numbers_RC, type_for(self.kind, numbers_RC.shape[1], is_head=is_head))
        except OverflowError:
            return quantize(numbers_RC, BF16)

    def layer(self, layer: DecoderLayer) -> LayerWeights:
        """Pack one layer. The experts' parameters are emptied as they are copied; where it is quantised, all are."""
        weights = self._layer(layer)
        if self.kind is not None:
            for parameter in layer.parameters():
                parameter.data = parameter.data.new_empty(0)
        return weights

    def _layer(self, layer: DecoderLayer) -> LayerWeights:
        is_sandwich = layer.block == "sandwich"
        feed_forward = layer.feed_forward
        return LayerWeights(
            attention_norm_D=_weight(layer.attention_norm),
            attention=self._attention(cast(Attention, layer.attention)),
            feed_forward_norm_D=_weight(layer.feed_forward_norm),
            feed_forward=self._moe(feed_forward) if isinstance(feed_forward, MoELayer) else self._network(feed_forward),
            attention_after_norm_D=_weight(layer.attention_after_norm) if is_sandwich else None,
            feed_forward_after_norm_D=_weight(layer.feed_forward_after_norm) if is_sandwich else None,
        )

    def _attention(self, attention: Attention) -> AttentionWeights:
        config: AttentionConfig = attention.config
        rows = [config.heads * config.head_width, *[config.kv_heads * config.head_width] * 2]
        query, key, value = torch.split(attention.query_key_value.weight, rows)
        fused_bias, output_bias = attention.query_key_value.bias, attention.output.bias
        biases = (None,) * 3 if fused_bias is None else [_numbers(part) for part in torch.split(fused_bias, rows)]
        normed = attention.query_norm is not None and attention.key_norm is not None
        return AttentionWeights(
            query=self.matrix(query),
            key=self.matrix(key),
            value=self.matrix(value),
            output=self.matrix(attention.output.weight),
            query_bias=biases[0],
            key_bias=biases[1],
            value_bias=biases[2],
            output_bias=None if output_bias is None else _numbers(output_bias),
            query_norm=_weight(attention.query_norm) if normed else None,
            key_norm=_weight(attention.key_norm) if normed else None,
        )

    def _network(self, network: FeedForward) -> NetworkWeights:
        gate_up = network.gate_up.weight
        if not network.activation.gated:
            return NetworkWeights(gate=None, up=self.matrix(gate_up), down=self.matrix(network.down.weight))
        gate, up = gate_up.chunk(2)
        return NetworkWeights(gate=self.matrix(gate), up=self.matrix(up), down=self.matrix(network.down.weight))

    def _moe(self, layer: MoELayer) -> MoEWeights:
        gate_up_EGD, down_EDF = layer.experts.gate_up_EGD, layer.experts.down_EDF
        halves = gate_up_EGD.detach().chunk(2, dim=1) if layer.config.gated else (gate_up_EGD.detach(),)
        *gate, up = (self.matrix(half.flatten(0, 1)) for half in halves)
        experts = NetworkWeights(gate=gate[0] if gate else None, up=up, down=self.matrix(down_EDF.flatten(0, 1)))
        gate_up_EGD.data = gate_up_EGD.data.new_empty(0)
        branch_gate = layer.branch_gate
        return MoEWeights(
            router=_as_stored(layer.router.weight.detach()),
            experts=experts,
            shared_expert=None if layer.branch is None else self._network(layer.branch),
            shared_expert_gate_D=None if branch_gate is None else _numbers(branch_gate.weight[0]),
        )


def _check_finite(model: Decoder) -> None:
    for name, parameter in model.named_parameters():
        if not torch.stack(parameter.detach().aminmax()).isfinite().all():
            raise MoekitError(f"{name!r} holds numbers that are not finite; the model is damaged.")


def _as_stored(numbers_RC: Tensor) -> PackedMatrix:
    numbers_RC = numbers_RC.contiguous()
    return PackedMatrix(numbers_RC.view(torch.uint8).numpy(), _AS_STORED[numbers_RC.dtype], numbers_RC.shape[1])


def _weight(norm: nn.Module | None) -> Numbers:
    assert isinstance(norm, RMSNorm)
    return _numbers(norm.factor_D)


def _numbers(parameter: Tensor) -> Numbers:
    return cast(Numbers, parameter.detach().float().numpy())
