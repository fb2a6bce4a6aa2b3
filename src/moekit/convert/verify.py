"""The proof of a conversion: the dense model and the result, read from their folders a layer at a time, on one probe.

In double precision, so that what differs is the weights and not the order of sums. B batch, T tokens, D model width,
V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from moekit.config import MoEConfig
from moekit.convert.stored_model import StoredModel, row_count, row_width
from moekit.core.errors import MoekitError
from moekit.kernels.activation import Activation, plain_activation
from moekit.kernels.assignments import Assignments
from moekit.models import Decoder
from moekit.models.decoder import DecoderLayer
from moekit.moe import MoELayer, RouterInput
from moekit.nn import RopeAngles
from moekit.nn.meta import on_meta

_HEAD_ROWS = 8192
_COMPARED_BYTES = 16 << 20
# Of the logits' standard deviation: what rounding leaves is far less, what a wrong scale does far more.
EXACT = 1e-5


@dataclass(frozen=True)
class Difference:
    """max |Δlogit| over the probe's real tokens, and the standard deviation of the dense model's logits."""

    maximum: float
    logit_std: float
    tokens: int

    @property
    def relative(self) -> float:
        """The one over the other."""
        return self.maximum / self.logit_std if self.logit_std else math.inf if self.maximum else 0.0


@dataclass(frozen=True)
class Probe:
    """tokens_BT, int64, and real_BT, False for padding at the end."""

    tokens_BT: Tensor
    real_BT: Tensor


def probe_of(vocab_size: int, context: int, *, rows: int = 3, tokens: int = 16, seed: int = 0) -> Probe:
    """Random tokens; each row but the first ends in padding."""
    length = min(tokens, context)
    draw = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(0, vocab_size, (rows, length), generator=draw)
    real_BT = torch.arange(length) < torch.tensor([[max(1, length - 3 * row)] for row in range(rows)])
    return Probe(tokens_BT, real_BT)


def compare(dense: StoredModel, result: StoredModel, probe: Probe) -> Difference:
    """Run both on the probe, one layer of one of them in memory at a time."""
    with torch.no_grad():
        ours, theirs = (ModelStream(stored).hidden(probe) for stored in (result, dense))
        real_BT = probe.real_BT
        maximum = total = squares = 0.0
        vocabulary = dense.config.vocab_size
        for begin in range(0, vocabulary, _HEAD_ROWS):
            end = min(vocabulary, begin + _HEAD_ROWS)
            expected = _logits(dense, theirs[real_BT], begin, end)
            maximum = max(maximum, float((_logits(result, ours[real_BT], begin, end) - expected).abs().max()))
            total += float(expected.sum())
            squares += float(expected.square().sum())
    count = int(real_BT.sum()) * vocabulary
    return Difference(maximum, math.sqrt(max(0.0, squares / count - (total / count) ** 2)), int(real_BT.sum()))


def check_copied(dense: StoredModel, result: StoredModel) -> None:
    """Raise MoekitError unless every parameter that both have is the same, bit for bit."""
    for name in dense.shapes:
        if name not in result.shapes:
            continue
        shape = dense.shapes[name]
        step = max(1, _COMPARED_BYTES // (row_width(shape) * 8))
        for begin in range(0, row_count(shape), step):
            end = min(row_count(shape), begin + step)
            a, b = dense.rows(name, begin, end), result.rows(name, begin, end)
            if a.dtype is not b.dtype or not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
                raise MoekitError(f"{name!r} in the result is not what it is in {dense.folder}; the copy is damaged.")


def tolerance(scales: Iterable[float], dtype: torch.dtype) -> float:
    """What an exact conversion may differ by: more where factors are rounded to less than fp32."""
    rounded = any(math.frexp(scale)[0] != 0.5 for scale in scales)
    narrow = torch.finfo(dtype).eps > torch.finfo(torch.float32).eps
    return 16 * torch.finfo(dtype).eps if rounded and narrow else EXACT


def memory_bytes(*models: Mapping[str, Tensor]) -> int:
    """What `compare` takes for models of such parameters: the largest layer, of its experts one, in double precision
    and as it is read.
    """
    return max(_largest_layer(shapes) for shapes in models) * (8 + 4)


def _largest_layer(shapes: Mapping[str, Tensor]) -> int:
    sizes = {"head": _HEAD_ROWS * shapes["embedding.weight"].shape[1]}
    for name, shape in shapes.items():
        if name.startswith("layers."):
            layer = ".".join(name.split(".")[:2])
            size = shape.numel() // shape.shape[0] if ".experts." in name else shape.numel()
            sizes[layer] = sizes.get(layer, 0) + size
    return max(sizes.values())


class ModelStream:
    """A stored decoder that computes with one layer in memory."""

    def __init__(self, stored: StoredModel) -> None:
        self.stored, self.config = stored, stored.config
        with on_meta():
            self.model = Decoder(stored.config).eval()

    def hidden(self, probe: Probe) -> Tensor:
        """h_BTD after the last norm, in double precision."""
        h_BTD = self.embedded(probe.tokens_BT)
        for index in range(len(self.config.layers)):
            h_BTD = self.layer(index, h_BTD, probe)
        weights = self._weights("norm.")
        return cast(Tensor, functional_call(self.model.norm, weights, (h_BTD,)))

    def embedded(self, tokens_BT: Tensor) -> Tensor:
        """What goes into the first layer; of the tables only the rows that are needed are read."""
        distinct_N, place_BT = torch.unique(tokens_BT, return_inverse=True)
        rows = [self.stored.rows("embedding.weight", token, token + 1) for token in distinct_N.tolist()]
        h_BTD = torch.cat(rows).double()[place_BT] * self.config.embedding_scale
        if self.config.learned_positions:
            h_BTD = h_BTD + self.stored.rows("position_embedding.weight", 0, tokens_BT.shape[1]).double()
        return h_BTD

    def layer(self, index: int, h_BTD: Tensor, probe: Probe) -> Tensor:
        """h_BTD after that layer."""
        layer = cast(DecoderLayer, self.model.layers[index])
        found = self.config.feed_forwards[index]
        if isinstance(found, MoEConfig) and isinstance(layer.feed_forward, MoELayer):
            streamed = _StreamedExperts(self.stored, index, found)
            layer.feed_forward.experts = streamed  # type: ignore[assignment]
        given = RouterInput(token_T=probe.tokens_BT.flatten(), real_T=probe.real_BT.flatten())
        arguments = (h_BTD, self._rope_angles(index, h_BTD.shape[1]), None, given)
        return cast(Tensor, functional_call(layer, self._weights(f"layers.{index}."), arguments)[0])

    def _rope_angles(self, layer: int, tokens: int) -> RopeAngles | None:
        rope = self.model.rope_of_layer[layer]
        return None if rope is None else self.model.ropes[rope].angles(0, tokens, torch.device("cpu"))

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self.stored.shapes if name.startswith(prefix) and ".experts." not in name]
        return {name.removeprefix(prefix): self.stored.parameter(name).double() for name in names}


class _StreamedExperts(nn.Module):
    """The experts of a layer, each read when its tokens are computed: the plain loop, with one in memory."""

    def __init__(self, stored: StoredModel, layer: int, config: MoEConfig) -> None:
        super().__init__()
        self.stored, self.prefix = stored, f"layers.{layer}.feed_forward.experts."
        self.activation, self.has_biases = Activation(config.activation, config.gated), config.bias

    def forward(self, x_TD: Tensor, assignments: Assignments) -> Tensor:
        """As moekit.moe.Experts does."""
        y_TD = torch.zeros_like(x_TD)
        offsets = assignments.expert_offsets
        for expert, (begin, end) in enumerate(pairwise(offsets)):
            if begin == end:
                continue
            token_S = assignments.token_S[begin:end]
            gate_up_SG = F.linear(x_TD[token_S], self._of("gate_up_EGD", expert), self._bias("gate_up_bias_EG", expert))
            hidden_SF = plain_activation(gate_up_SG, self.activation)
            y_SD = F.linear(hidden_SF, self._of("down_EDF", expert), self._bias("down_bias_ED", expert))
            y_TD[token_S] += assignments.weight_S[begin:end, None] * y_SD  # a token has an expert once
        return y_TD

    def _of(self, name: str, expert: int) -> Tensor:
        """The expert's matrix or bias."""
        shape = self.stored.shapes[self.prefix + name].shape[1:]
        rows = math.prod(shape[:-1])
        return self.stored.rows(self.prefix + name, expert * rows, (expert + 1) * rows).double().view(shape)

    def _bias(self, name: str, expert: int) -> Tensor | None:
        return self._of(name, expert) if self.has_biases else None


def _logits(model: StoredModel, h_ND: Tensor, begin: int, end: int) -> Tensor:
    """The logits of some of the vocabulary, (N, end - begin)."""
    name = "embedding.weight" if model.config.tie_embeddings else "head.weight"
    return F.linear(h_ND, model.rows(name, begin, end).double()) * model.config.logit_scale
