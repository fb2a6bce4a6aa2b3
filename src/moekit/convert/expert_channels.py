"""Experts made of the channels of dense feed-forward networks, as pieces of the tensors of the new model.

D model width, F channels of the dense network, E experts. Names are those of our parameters. A channel is a row of the
up matrix (and of the gate) with its bias, and a column of down with 1/F of the bias of down: networks of some channels
each, added up, are the dense network.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.convert.storage.output_tensors import Made, Piece
from moekit.convert.stored_model import StoredModel, dense_of, row_count, row_width

# A matrix whose columns are scaled or left out is read and computed so many bytes at a time.
_BLOCK_BYTES = 16 << 20

Matrix = Literal["gate", "up", "down", "gate bias", "up bias"]
Channels = range | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A network of some channels of a dense one, its down projection times `scale`, one a channel or one for all.

    change: what is done to each matrix, (channels, D) whichever it is, and to biases of gate and up, (channels, 1),
    where it is not a plain copy; key: says how.
    """

    channels: Channels
    scale: float | Tensor = 1.0
    change: Callable[[Matrix, Tensor], Tensor] | None = None
    key: str = ""

    @property
    def scales(self) -> tuple[float, ...]:
        """`scale` as numbers, one a channel or one for all."""
        return (self.scale,) if isinstance(self.scale, float) else tuple(self.scale.tolist())

    def bias_scale(self, channels: int) -> float:
        """Compute what the bias of down is multiplied by, where the dense network has so many `channels`.

        Each channel carries its share of the bias, 1 / F, and the channel's scale applies to it as to its column. So
        whenever the weighted columns of all chosen networks add up to the dense network's own, so do their biases, to
        the dense one once: with E copies of weights that sum to 1 each holds the bias itself; cut into G parts of scale
        G each again, G / G; with weights that sum to K / N each holds N / K of it; beside a shared branch, which holds
        alpha of some parts, both hold what they have of those.
        """
        return sum(self.scales) * len(self.channels) / len(self.scales) / channels


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a layer becomes: its routed experts, the router's rows, and the network beside it, if there is one.

    router: gives weight (E, D).
    """

    experts: tuple[Slot, ...]
    router: Callable[[], Tensor]
    router_key: str
    branch: Slot | None = None


class MixtureParameters:
    """What the parameters of the new model are made of: everything but the mixtures is the source's.

    mixtures: by layer. shapes: of the new model's parameters.
    """

    def __init__(self, source: StoredModel, mixtures: Mapping[int, Mixture], shapes: Mapping[str, Tensor]) -> None:
        self.source, self.mixtures, self.shapes = source, mixtures, shapes

    def dtype(self, name: str) -> torch.dtype:
        """Give the type of the source's weights that a parameter is made of."""
        if name in self.source.dtypes:
            return self.source.dtypes[name]
        if name.endswith("router.bias_E"):
            return torch.float32  # a buffer whose steps would be lost in less
        layer, role = name.split(".feed_forward.")
        which, part = "down" if "down" in role else "gate_up", "bias" if "bias" in role else "weight"
        return self.source.dtypes[f"{layer}.feed_forward.{which}.{part}"]

    def stored(self, entry: Stored) -> Piece | None:
        """Give a tensor that the source's folder holds in the same way."""
        return self.source.stored_piece(entry.name) if self.source.holds(entry, self.shapes) else None

    def parameter(self, name: str) -> Tensor:
        """Read a parameter that stays as it is."""
        return self.source.parameter(name)

    def pieces(self, name: str, rows: range) -> Iterator[Piece]:
        """Give rows of the source's parameter of that name, or of a mixture's."""
        if name in self.source.shapes:
            yield from self.source.pieces(name, rows.start, rows.stop)
            return
        layer = int(name.split(".")[1])
        mixture, role = self.mixtures[layer], name.split(".feed_forward.")[1]
        network = _Network(self.source, layer)
        match role:
            case "experts.gate_up_EGD" | "experts.down_EDF":
                for expert, cut in rows_by_expert(rows, row_count(self.shapes[name]) // len(mixture.experts)):
                    yield from network.rows(role == "experts.down_EDF", mixture.experts[expert], cut)
            case "branch.gate_up.weight" | "branch.down.weight":
                assert mixture.branch is not None
                yield from network.rows(role == "branch.down.weight", mixture.branch, rows)
            case "experts.gate_up_bias_EG" | "experts.down_bias_ED":
                for slot in mixture.experts[rows.start : rows.stop]:
                    yield from network.bias(role == "experts.down_bias_ED", slot)
            case "branch.gate_up.bias" | "branch.down.bias":
                assert mixture.branch is not None
                assert len(rows) == row_count(self.shapes[name])  # our own folders' alone
                yield from network.bias(role == "branch.down.bias", mixture.branch)
            case "router.weight":
                size = 2 * self.shapes[name].numel() * 4
                whole = Made(mixture.router, tuple(self.shapes[name].shape), size, mixture.router_key)
                yield whole if len(rows) == self.shapes[name].shape[0] else _cut(whole, rows)
            case _:  # a gate of the branch, or the router's bias: as good as none before training
                shape = (len(rows), row_width(self.shapes[name]))
                yield Made(lambda: torch.zeros(shape), shape, math.prod(shape) * 4, "zeros")


def rows_by_expert(rows: range, each: int) -> Iterator[tuple[int, range]]:
    """Cut rows of all experts into those of each: the expert, and which of its own `each` rows."""
    for expert in range(rows.start // each, -(-rows.stop // each)):
        first = expert * each
        yield expert, range(max(rows.start, first) - first, min(rows.stop, first + each) - first)


def _cut(made: Made, rows: range) -> Made:
    shape = (len(rows), *made.shape[1:])
    return Made(lambda: made.make()[rows.start : rows.stop], shape, made.memory_bytes, made.key)


class _Network:
    """The dense network of one layer, and what can be made of it."""

    def __init__(self, source: StoredModel, layer: int) -> None:
        dense = dense_of(source.config, layer)
        self.source, self.width, self.gated = source, dense.width, dense.gated
        self.gate_up = f"layers.{layer}.feed_forward.gate_up.weight"
        self.down = f"layers.{layer}.feed_forward.down.weight"
        self.gate_up_bias = f"layers.{layer}.feed_forward.gate_up.bias"
        self.down_bias = f"layers.{layer}.feed_forward.down.bias"

    def rows(self, is_down: bool, slot: Slot, rows: range) -> Iterator[Piece]:
        """Give rows of a slot's down matrix, or of its gate over up (up alone, where it is not gated)."""
        if is_down:
            yield from self._down_rows(slot, rows)
            return
        count = len(slot.channels)
        for place, (matrix, offset) in enumerate(self._matrices()):
            begin, end = max(rows.start, place * count), min(rows.stop, (place + 1) * count)
            if begin < end:
                yield from self._up_rows(slot, matrix, offset, range(begin - place * count, end - place * count))

    def bias(self, is_down: bool, slot: Slot) -> Iterator[Piece]:
        """Give a slot's bias of down, or of its gate, then of up (of up alone, where it is not gated)."""
        if is_down:
            yield from self._down_bias(slot)
            return
        for matrix, offset in self._matrices():
            yield from self._up_bias(slot, matrix, offset)

    def _matrices(self) -> list[tuple[Literal["gate", "up"], int]]:
        """Tell what stands in the first matrix, and from which row on."""
        return [("gate", 0), ("up", self.width)] if self.gated else [("up", 0)]

    def _up_bias(self, slot: Slot, matrix: Literal["gate", "up"], offset: int) -> Iterator[Piece]:
        if slot.change is None and isinstance(slot.channels, range):
            channels = slot.channels
            yield from self.source.pieces(self.gate_up_bias, offset + channels.start, offset + channels.stop)
            return
        which: Matrix = "gate bias" if matrix == "gate" else "up bias"

        def make() -> Tensor:
            values = self.source.rows(self.gate_up_bias, offset, offset + self.width)[list(slot.channels)]
            return values if slot.change is None else slot.change(which, values.float())

        yield self._made(make, (len(slot.channels), 1), 4 * self.width, self.gate_up_bias, slot, which)

    def _down_bias(self, slot: Slot) -> Iterator[Piece]:
        scale, count = slot.bias_scale(self.width), row_count(self.source.shapes[self.down_bias])
        if scale == 1:
            yield from self.source.pieces(self.down_bias, 0, count)
            return

        def make() -> Tensor:
            return self.source.rows(self.down_bias).float() * scale

        yield self._made(make, (count, 1), 4 * count, self.down_bias, slot, "down bias")

    def _up_rows(self, slot: Slot, matrix: Matrix, offset: int, rows: range) -> Iterator[Piece]:
        wanted = slot.channels[rows.start : rows.stop]
        width = row_width(self.source.shapes[self.gate_up])
        if slot.change is None:
            for run in runs_of(wanted):
                yield from self.source.pieces(self.gate_up, offset + run.start, offset + run.stop)
            return

        def make() -> Tensor:
            whole = self._channels(slot, offset)
            assert slot.change is not None
            return slot.change(matrix, whole)[rows.start : rows.stop]

        yield self._made(make, (len(rows), width), 4 * len(slot.channels) * width, self.gate_up, slot, matrix)

    def _channels(self, slot: Slot, offset: int) -> Tensor:
        """Read the channels' rows of gate or up, in fp32."""
        runs = runs_of(slot.channels)
        return torch.cat(
            [self.source.rows(self.gate_up, offset + run.start, offset + run.stop) for run in runs]
        ).float()

    def _down_rows(self, slot: Slot, rows: range) -> Iterator[Piece]:
        plain = isinstance(slot.scale, float) and slot.scale == 1 and slot.channels == range(self.width)
        if plain and slot.change is None:
            yield from self.source.pieces(self.down, rows.start, rows.stop)
            return
        # Changes are drawn for a matrix as a whole; columns are taken a block of rows at a time.
        step = len(rows) if slot.change is not None else max(1, _BLOCK_BYTES // (4 * self.width))
        for begin in range(rows.start, rows.stop, step):
            end = min(rows.stop, begin + step)

            def make(begin: int = begin, end: int = end) -> Tensor:
                return self._down_block(slot, begin, end)

            shape = (end - begin, len(slot.channels))
            yield self._made(make, shape, 4 * (end - begin) * self.width, self.down, slot, "down")

    def _down_block(self, slot: Slot, begin: int, end: int) -> Tensor:
        channels = slot.channels
        index = slice(channels.start, channels.stop) if isinstance(channels, range) else list(channels)
        if slot.change is not None:
            whole = self.source.rows(self.down)[:, index].float()
            changed = slot.change("down", whole.t()).t()[begin:end]
            return changed * slot.scale
        return self.source.rows(self.down, begin, end)[:, index].float() * slot.scale

    def _made(
        self, make: Callable[[], Tensor], shape: tuple[int, int], fp32: int, name: str, slot: Slot, matrix: str
    ) -> Made:
        """fp32: bytes of what is worked on in full precision, of which there are up to three copies."""
        key = json_key(matrix, name, slot.key, _digest(slot))
        return Made(make, shape, 3 * fp32 + self.source.memory_bytes(name), key)


def json_key(*parts: str) -> str:
    """Join parts of a key so that no two lists of parts look alike."""
    return repr(parts)


def _digest(slot: Slot) -> str:
    return hashlib.sha256(repr((list(slot.channels), slot.scales)).encode()).hexdigest()[:16]


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
