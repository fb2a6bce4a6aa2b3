"""A decoder that computes with the weights of one layer in memory, and of its experts with one.

Weights are multiplied from aligned memory, so that the same model gives the same bits wherever its files hold them.

B batch, T tokens, D model width, S assignments of an expert.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from moekit.checkpoint.alignment import aligned
from moekit.config import ModelConfig, MoEConfig
from moekit.kernels.activation import Activation, plain_activation
from moekit.kernels.assignments import Assignments
from moekit.models.decoder import Decoder, DecoderLayer
from moekit.moe import MoELayer, RouterInput, Routing
from moekit.nn.meta import on_meta


class ReadableModel(Protocol):
    """A decoder whose parameters are read by our names when they are asked for; it need not lie in a folder.

    Rows are those of a parameter flattened to its last dimension; a vector has as many as elements.
    """

    @property
    def config(self) -> ModelConfig:
        """What the decoder is."""
        ...

    @property
    def shapes(self) -> Mapping[str, Tensor]:
        """Our parameters, on the meta device."""
        ...

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Read rows of a parameter, (end - begin, last dimension), into memory of their own."""
        ...


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens. tokens_BT: int64. real_BT: bool, False for padding."""

    tokens_BT: Tensor
    real_BT: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, padding: int = 0, left: bool = False) -> "TokenBatch":
        """Make a batch of rows of tokens, padded at their end, or on the left."""
        length = max(map(len, rows))
        filled = [[padding] * (length - len(row)) for row in rows]
        tokens = [[*fill, *row] if left else [*row, *fill] for row, fill in zip(rows, filled, strict=True)]
        place_T = torch.arange(length).flip(0) if left else torch.arange(length)
        counts_B1 = torch.tensor([len(row) for row in rows])[:, None]
        return cls(torch.tensor(tokens, dtype=torch.int64).view(len(rows), length), place_T < counts_B1)


@dataclass(frozen=True)
class LayerRun:
    """What a layer read and gave for each batch.

    feed_forward_inputs: x_BTD of its feed-forward network, which a router in its place reads, too. outputs: h_BTD after
    the layer. routings: of the tokens of each batch in row-major order; empty for a dense layer.
    """

    index: int
    feed_forward_inputs: list[Tensor]
    outputs: list[Tensor]
    routings: list[Routing]


class StreamedDecoder:
    """A decoder whose weights are read, and turned into `dtype`, layer by layer."""

    def __init__(self, source: ReadableModel, dtype: torch.dtype) -> None:
        self.source, self.config, self.dtype = source, source.config, dtype
        with on_meta():
            self.model = Decoder(source.config).eval()

    def run(self, batches: Sequence[TokenBatch]) -> Iterator[LayerRun]:
        """Run all batches, padded at their end, through one layer after the other."""
        with torch.no_grad():
            hidden = [self._embedded(batch.tokens_BT) for batch in batches]
        for index in range(len(self.config.layers)):
            with torch.no_grad():
                run = self._layer(index, hidden, batches)
            yield run
            hidden = run.outputs

    def final(self, batch: TokenBatch) -> Tensor:
        """Compute h_BTD after the last norm."""
        h_BTD = torch.empty(0)
        for run in self.run([batch]):
            (h_BTD,) = run.outputs
        with torch.no_grad():
            return cast(Tensor, functional_call(self.model.norm, self._weights("norm."), (h_BTD,)))

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        """Compute what goes into the first layer; of the tables only the rows that are needed are read."""
        h_BTD = embedding_rows(self.source, tokens_BT, self.dtype) * self.config.embedding_scale
        if self.config.learned_positions:
            h_BTD = h_BTD + self.source.rows("position_embedding.weight", 0, tokens_BT.shape[1]).to(self.dtype)
        return h_BTD

    def _layer(self, index: int, hidden: Sequence[Tensor], batches: Sequence[TokenBatch]) -> LayerRun:
        layer = cast(DecoderLayer, self.model.layers[index])
        found = self.config.feed_forwards[index]
        if isinstance(found, MoEConfig) and isinstance(layer.feed_forward, MoELayer):
            streamed = _StreamedExperts(self.source, index, found, self.dtype)
            layer.feed_forward.experts = streamed  # type: ignore[assignment]
        weights, run = self._weights(f"layers.{index}."), LayerRun(index, [], [], [])
        hook = layer.feed_forward.register_forward_pre_hook(
            lambda module, inputs: run.feed_forward_inputs.append(inputs[0])
        )
        for h_BTD, batch in zip(hidden, batches, strict=True):
            given = RouterInput(token_T=batch.tokens_BT.flatten(), real_T=batch.real_BT.flatten())
            rope = self.model.rope_of_layer[index]
            angles = None if rope is None else self.model.ropes[rope].angles(0, h_BTD.shape[1], torch.device("cpu"))
            h_BTD, added_BTD, routing = functional_call(layer, weights, (h_BTD, None, angles, None, given))
            run.outputs.append(h_BTD + added_BTD)
            if routing is not None:
                run.routings.append(routing)
        hook.remove()
        return run

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self.source.shapes if name.startswith(prefix) and ".experts." not in name]
        return {name.removeprefix(prefix): self._read(name).view(self.source.shapes[name].shape) for name in names}

    def _read(self, name: str) -> Tensor:
        return aligned(self.source.rows(name).to(self.dtype))


class _StreamedExperts(nn.Module):
    """The experts of a layer, each read when its tokens are computed: the plain loop, with one in memory."""

    def __init__(self, source: ReadableModel, layer: int, config: MoEConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.prefix, self.dtype = source, f"layers.{layer}.feed_forward.experts.", dtype
        self.activation, self.has_biases = Activation(config.activation, config.gated), config.bias

    def forward(self, x_TD: Tensor, assignments: Assignments) -> Tensor:
        """Compute what moekit.moe.Experts computes; a token has an expert once."""
        y_TD = torch.zeros_like(x_TD)
        for expert, (begin, end) in enumerate(pairwise(assignments.expert_offsets)):
            if begin == end:
                continue
            token_S = assignments.token_S[begin:end]
            gate_up_SG = F.linear(x_TD[token_S], self._of("gate_up_EGD", expert), self._bias("gate_up_bias_EG", expert))
            hidden_SF = plain_activation(gate_up_SG, self.activation)
            y_SD = F.linear(hidden_SF, self._of("down_EDF", expert), self._bias("down_bias_ED", expert))
            y_TD[token_S] += (assignments.weight_S[begin:end, None] * y_SD).to(y_TD.dtype)
        return y_TD

    def _of(self, name: str, expert: int) -> Tensor:
        """Read the expert's matrix or bias."""
        shape = self.source.shapes[self.prefix + name].shape[1:]
        rows = math.prod(shape[:-1])
        found = self.source.rows(self.prefix + name, expert * rows, (expert + 1) * rows)
        return aligned(found.to(self.dtype)).view(shape)

    def _bias(self, name: str, expert: int) -> Tensor | None:
        return self._of(name, expert) if self.has_biases else None


def embedding_rows(source: ReadableModel, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Read the embeddings of tokens, (B, T, D), each of the table's rows once."""
    distinct_N, place_BT = torch.unique(tokens_BT, return_inverse=True)
    rows = [source.rows("embedding.weight", token, token + 1) for token in distinct_N.tolist()]
    return torch.cat(rows).to(dtype)[place_BT]
