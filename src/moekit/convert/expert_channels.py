"""Experts made of the channels of dense feed-forward networks, as pieces of the tensors of a new model.

D model width, F channels of the dense network, E experts. Names are those of our parameters. A channel is a row of the
up matrix (and of the gate) with its bias, and a column of down with 1/F of the bias of down: networks of some channels
each, added up, are the dense network.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from moekit.config import DenseConfig
from moekit.convert.model_pieces import pieces_of
from moekit.convert.storage.output_tensors import Made, Piece
from moekit.models.stored_model import StoredModel, dense_of, row_count, row_width

# A matrix whose columns are scaled or left out is read and computed so many bytes at a time.
_BLOCK_BYTES = 16 << 20

Matrix = Literal["gate", "up", "down", "gate bias", "up bias", "down bias"]
Channels = range | tuple[int, ...]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A network of channels of a model's dense one, its down projection times `scale`, one a channel or one for all.

    source, layer: where the dense one stands. changes: by matrix, what is done to it where it is not a plain copy: it
    gets matrices as (channels, D), whichever they are, and biases as (channels, 1), that of down as (D, 1), in the type
    that they are stored in. key: says what they do.
    """

    source: StoredModel
    layer: int
    channels: Channels
    scale: float | Tensor = 1.0
    changes: Mapping[Matrix, Change] = field(default_factory=dict)
    key: str = ""

    @property
    def dense(self) -> DenseConfig:
        """The network that the channels are of."""
        return dense_of(self.source.config, self.layer)

    @property
    def scales(self) -> tuple[float, ...]:
        """`scale` as numbers, one a channel or one for all."""
        return (self.scale,) if isinstance(self.scale, float) else tuple(self.scale.tolist())

    @property
    def bias_scale(self) -> float:
        """What the bias of down is multiplied by.

        Each channel carries its share of the bias, 1 / F, and the channel's scale applies to it as to its column. So
        whenever the weighted columns of all chosen networks add up to the dense network's own, so do their biases, to
        the dense one once: with E copies of weights that sum to 1 each holds the bias itself; cut into G parts of scale
        G each again, G / G; with weights that sum to K / N each holds N / K of it; beside a shared branch, which holds
        alpha of some parts, both hold what they have of those.
        """
        return sum(self.scales) * len(self.channels) / len(self.scales) / self.dense.width

    def dtype(self, *, is_down: bool, is_bias: bool) -> torch.dtype:
        """Give the type that the source stores the matrix in, or its bias."""
        return self.source.dtypes[self._name(is_down=is_down, is_bias=is_bias)]

    def pieces(self, rows: range, *, is_down: bool, is_bias: bool) -> Iterator[Piece]:
        """Give rows of its down matrix, or of its gate over up (up alone, where it has no gate); or all of a bias."""
        name, count = self._name(is_down=is_down, is_bias=is_bias), len(self.channels)
        if is_down:
            yield from self._down_bias(name) if is_bias else self._down_rows(name, rows)
            return
        matrices: list[tuple[Matrix, Matrix]] = [("up", "up bias")]
        if self.dense.gated:
            matrices.insert(0, ("gate", "gate bias"))
        for place, (matrix, bias) in enumerate(matrices):
            first = place * count
            own = range(count) if is_bias else range(max(rows.start - first, 0), min(rows.stop - first, count))
            if own:
                yield from self._up_rows(bias if is_bias else matrix, name, place * self.dense.width, own)

    def made_key(self, matrix: Matrix, name: str) -> str:
        """Tell what is made of a matrix from what others make of it."""
        channels = hashlib.sha256(repr((list(self.channels), self.scales)).encode()).hexdigest()[:16]
        return repr((matrix, name, self.key, channels))

    def _name(self, *, is_down: bool, is_bias: bool) -> str:
        """Give the name of a parameter of the dense network."""
        return f"layers.{self.layer}.feed_forward.{'down' if is_down else 'gate_up'}.{'bias' if is_bias else 'weight'}"

    def _up_rows(self, matrix: Matrix, name: str, offset: int, rows: range) -> Iterator[Piece]:
        """Give the channels' rows of gate or up, or elements of their biases, which begin at row `offset`."""
        wanted, change = self.channels[rows.start : rows.stop], self.changes.get(matrix)
        # Of a bias a run of neighbours would be a few numbers only.
        if change is None and (isinstance(wanted, range) or not matrix.endswith("bias")):
            for run in runs_of(wanted):
                yield from pieces_of(self.source, name, offset + run.start, offset + run.stop)
            return

        def make() -> Tensor:
            runs = runs_of(self.channels)
            whole = torch.cat([self.source.rows(name, offset + run.start, offset + run.stop) for run in runs])
            return (whole if change is None else change(whole))[rows.start : rows.stop]

        width = row_width(self.source.shapes[name])
        yield self._made(make, (len(rows), width), len(self.channels) * width, name, matrix)

    def _down_rows(self, name: str, rows: range) -> Iterator[Piece]:
        width, change = self.dense.width, self.changes.get("down")
        if change is None and self.scales == (1.0,) and self.channels == range(width):
            yield from pieces_of(self.source, name, rows.start, rows.stop)
            return
        # Changes are drawn for a matrix as a whole; columns are taken a block of rows at a time.
        step = len(rows) if change is not None else max(1, _BLOCK_BYTES // (4 * width))
        for begin in range(rows.start, rows.stop, step):
            end = min(rows.stop, begin + step)

            def make(begin: int = begin, end: int = end) -> Tensor:
                return self._down_block(name, begin, end)

            yield self._made(make, (end - begin, len(self.channels)), (end - begin) * width, name, "down")

    def _down_block(self, name: str, begin: int, end: int) -> Tensor:
        channels, change = self.channels, self.changes.get("down")
        index = slice(channels.start, channels.stop) if isinstance(channels, range) else list(channels)
        if change is not None:
            return change(self.source.rows(name)[:, index].t()).t()[begin:end] * self.scale
        return self.source.rows(name, begin, end)[:, index].float() * self.scale

    def _down_bias(self, name: str) -> Iterator[Piece]:
        scale, count, change = self.bias_scale, row_count(self.source.shapes[name]), self.changes.get("down bias")
        if change is None and scale == 1:
            yield from pieces_of(self.source, name, 0, count)
            return

        def make() -> Tensor:
            values = self.source.rows(name)
            return values.float() * scale if change is None else change(values)

        yield self._made(make, (count, 1), count, name, "down bias")

    def _made(
        self, make: Callable[[], Tensor], shape: tuple[int, int], numbers: int, name: str, matrix: Matrix
    ) -> Made:
        """numbers: how many are worked on, in full precision, of which there are up to three copies."""
        return Made(make, shape, 12 * numbers + self.source.memory_bytes(name), self.made_key(matrix, name))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a layer becomes: its routed experts, what decides between them, and the network beside them, if any.

    routers: what gives `router.weight` (E, D) and `branch_gate.weight` (1, D); what is missing is zeros, as good as
    none before training. router_key: tells them from others. router_dtype: None: that of the experts.
    """

    experts: tuple[Slot, ...]
    branch: Slot | None = None
    routers: Mapping[str, Callable[[], Tensor]]
    router_key: str
    router_dtype: torch.dtype | None = None

    def dtype(self, role: str) -> torch.dtype:
        """Give the type of the weights that a parameter, named from the layer's `feed_forward` on, is made of."""
        if role == "router.bias_E":
            return torch.float32  # a buffer whose steps would be lost in less
        if role.endswith(ROUTERS) and self.router_dtype is not None:
            return self.router_dtype
        slot = self.branch if role.startswith("branch.") and self.branch else self.experts[0]
        return slot.dtype(is_down="down" in role, is_bias="bias" in role)

    def pieces(self, role: str, rows: range, parameter: Tensor) -> Iterator[Piece]:
        """Give rows of a parameter as pieces. parameter: its shape."""
        if role in self.routers:
            memory = 8 * parameter.numel()
            make = self.routers[role]
            yield Made(
                lambda: make()[rows.start : rows.stop], (len(rows), row_width(parameter)), memory, self.router_key
            )
        elif role.startswith(("experts.", "branch.")):
            slots = self.experts if role.startswith("experts.") else (self.branch,)
            for index, cut in rows_by_expert(rows, row_count(parameter) // len(slots)):
                slot = slots[index]
                assert slot is not None
                yield from slot.pieces(cut, is_down="down" in role, is_bias="bias" in role)
        else:
            yield zeros((len(rows), row_width(parameter)))


ROUTERS = ("router.weight", "branch_gate.weight")
"""The ends of the names of what decides where tokens go: routers, and gates of shared experts."""


def zeros(shape: tuple[int, ...]) -> Made:
    """Give zeros as a piece."""
    return Made(lambda: torch.zeros(shape), shape, math.prod(shape) * 4, "zeros")


def rows_by_expert(rows: range, each: int) -> Iterator[tuple[int, range]]:
    """Cut rows of all experts into those of each: the expert, and which of its own `each` rows."""
    for expert in range(rows.start // each, -(-rows.stop // each)):
        first = expert * each
        yield expert, range(max(rows.start, first) - first, min(rows.stop, first + each) - first)


def runs_of(channels: Sequence[int]) -> list[range]:
    """Give the channels as runs of neighbours."""
    if isinstance(channels, range):
        return [channels]
    runs: list[range] = []
    for channel in channels:
        if runs and runs[-1].stop == channel:
            runs[-1] = range(runs[-1].start, channel + 1)
        else:
            runs.append(range(channel, channel + 1))
    return runs
