"""The log of a training's steps: the loss, the routing of each layer, and warnings of collapse."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel

from moekit.config import MoEConfig
from moekit.core import files
from moekit.moe import RoutingStats, Sums, collapse_text, routing_stats

# Fewer consecutive steps than this are a bad batch, not a collapse.
COLLAPSED_STEPS = 20

_NEEDED = ("tokens", "chosen", "computed", "top_score", "logit_squares")


def routing_by_layer(layers: Iterable[int], sums: Sequence[Sums]) -> dict[int, RoutingStats]:
    """Compute the figures of each MoE layer, by its index in the model.

    Args:
        layers: the indices of the layers, in the order of `sums`.
        sums: the sums of each layer over the whole batch.
    """
    if not sums:
        return {}
    # Together: a device is waited for once, not once for each figure. Counts are exact in doubles.
    wanted = [of_layer[name].double().flatten() for of_layer in sums for name in _NEEDED]
    parts = iter(torch.split(torch.cat(wanted).cpu(), [part.numel() for part in wanted]))
    return {layer: routing_stats({name: next(parts) for name in _NEEDED}) for layer in layers}


class CollapseWatch(BaseModel):
    """Watches for collapse: for how many steps on end each layer has been collapsed, and its one warning."""

    streaks: dict[int, int] = {}
    warnings: dict[int, str] = {}

    def see(self, step: int, moe_configs: Mapping[int, MoEConfig], layers: Mapping[int, RoutingStats]) -> list[str]:
        """Take in the figures of a step, and give a sentence for each layer whose collapse has now lasted.

        Args:
            step: the step.
            moe_configs: the configuration of each layer with experts.
            layers: the figures of each of them.
        """
        new = {}
        for layer, stats in layers.items():
            moe = moe_configs[layer]
            text = collapse_text(stats, experts=moe.experts, experts_per_token=moe.router.experts_per_token)
            self.streaks[layer] = self.streaks.get(layer, 0) + 1 if text else 0
            if self.streaks[layer] >= COLLAPSED_STEPS and layer not in self.warnings:
                new[layer] = f"layer {layer}: {text} (step {step})"
        self.warnings |= new
        return list(new.values())


class StepRecord(BaseModel):
    """A line of `steps.jsonl`.

    Attributes:
        loss: bits per token.
        seconds: the time spent in training steps so far.
        layers: the figures of the layers with experts.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float
    layers: list[dict[str, int | float]]

    @classmethod
    def of(cls, step: int, loss: float, rate: float, seconds: float, layers: Mapping[int, RoutingStats]) -> Self:
        """Make the record of a step from the figures of its layers."""
        figures = [{"layer": layer, **asdict(stats)} for layer, stats in layers.items()]
        return cls(step=step, loss=loss, learning_rate=rate, seconds=seconds, layers=figures)


class StepLog:
    """A file with a line a step, `steps.jsonl` in the run's folder; with `tensorboard` also events for TensorBoard.

    Writes raise MoekitError where the disk is full.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "steps.jsonl"
        self.tensorboard = tensorboard
        self._file: FileIO | None = None
        self._events: Any = None  # a SummaryWriter, which comes with an optional package

    @contextmanager
    def going_on(self, step: int) -> Iterator[None]:
        """Open the log within the block, with nothing in it from beyond `step`, where the run goes on."""
        self._forget_after(step)
        try:
            with files.full_disk_in_words(self.path):
                # Without a buffer, what was written is there after a kill, and nothing is left to write on closing.
                self._file = self.path.open("ab", buffering=0)
                if self.tensorboard:
                    from torch.utils.tensorboard import SummaryWriter

                    self._events = SummaryWriter(str(self.path.parent), purge_step=step + 1)
            yield
        finally:
            self._close()

    def write(self, record: StepRecord) -> None:
        """Append one step."""
        assert self._file is not None, "only within going_on"
        line = memoryview(record.model_dump_json().encode() + b"\n")
        with files.full_disk_in_words(self.path):
            while line:
                line = line[self._file.write(line) :]
            if self._events is not None:
                _write_event(self._events, record)

    def _forget_after(self, step: int) -> None:
        """Drop the lines beyond `step`, and a line that a kill cut off with what follows it."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        with files.replacing(self.path) as temporary, self.path.open("rb") as old, temporary.open("wb") as new:
            for line in old:
                if not line.endswith(b"\n") or _step_of(line) > step:
                    break
                new.write(line)

    def _close(self) -> None:
        with files.full_disk_in_words(self.path):
            if self._file is not None:
                self._file.close()
            if self._events is not None:
                self._events.close()
        self._file = self._events = None


def _step_of(line: bytes) -> float:
    """Read the step of a line; it is infinite where it cannot be read."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _write_event(events: Any, record: StepRecord) -> None:
    """Write all figures in one event: an event a figure takes ten times as long."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    figures = {"loss": record.loss, "learning_rate": record.learning_rate}
    for of_layer in record.layers:
        figures |= {f"{name}/layer {of_layer['layer']}": value for name, value in of_layer.items() if name != "layer"}
    values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    events.file_writer.add_summary(Summary(value=values), record.step)
