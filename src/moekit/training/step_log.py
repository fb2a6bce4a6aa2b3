"""What the routers do while a model trains: figures of each layer, a log of all steps, a warning of collapse."""

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
    """The figures of each MoE layer, by its index in the model; `layers` are these, in the order of `sums`."""
    if not sums:
        return {}
    # Together: a device is waited for once, not once for each figure. Counts are exact in doubles.
    wanted = [of_layer[name].double().flatten() for of_layer in sums for name in _NEEDED]
    parts = iter(torch.split(torch.cat(wanted).cpu(), [part.numel() for part in wanted]))
    return {layer: routing_stats({name: next(parts) for name in _NEEDED}) for layer in layers}


class CollapseWatch(BaseModel):
    """For how many steps on end each layer has been collapsed, and what was said about it, once a layer."""

    streaks: dict[int, int] = {}
    warnings: dict[int, str] = {}

    def see(self, step: int, mixtures: Mapping[int, MoEConfig], layers: Mapping[int, RoutingStats]) -> list[str]:
        """Take in the figures of `step`; gives a sentence for each layer whose collapse has now lasted.

        mixtures: the configuration of each layer with experts.
        """
        new = {}
        for layer, stats in layers.items():
            moe = mixtures[layer]
            text = collapse_text(stats, experts=moe.experts, experts_per_token=moe.router.experts_per_token)
            self.streaks[layer] = self.streaks.get(layer, 0) + 1 if text else 0
            if self.streaks[layer] >= COLLAPSED_STEPS and layer not in self.warnings:
                new[layer] = f"layer {layer}: {text} (step {step})"
        self.warnings |= new
        return list(new.values())


class StepRecord(BaseModel):
    """A line of `steps.jsonl`. loss: bits per token; seconds: in training steps so far; layers: those with experts."""

    step: int
    loss: float
    learning_rate: float
    seconds: float
    layers: list[dict[str, int | float]]

    @classmethod
    def of(cls, step: int, loss: float, rate: float, seconds: float, layers: Mapping[int, RoutingStats]) -> Self:
        figures = [{"layer": layer, **asdict(stats)} for layer, stats in layers.items()]
        return cls(step=step, loss=loss, learning_rate=rate, seconds=seconds, layers=figures)


class StepLog:
    """A line a step in `steps.jsonl` in the run's folder; with `tensorboard` also events for TensorBoard beside it.

    Writes raise MoekitError where the disk is full.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "steps.jsonl"
        self.tensorboard = tensorboard
        self._file: FileIO | None = None
        self._events: Any = None  # a SummaryWriter, which comes with an optional package

    @contextmanager
    def going_on(self, step: int) -> Iterator[None]:
        """Open within the block, with nothing in it from beyond `step`, where the run goes on."""
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
        """Keep the lines up to `step`; one that a kill cut off, and what follows it, goes too."""
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
    """The step of a line; infinite where it cannot be read."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _write_event(events: Any, record: StepRecord) -> None:
    """All figures in one event: an event a figure takes ten times as long."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    figures = {"loss": record.loss, "learning_rate": record.learning_rate}
    for of_layer in record.layers:
        figures |= {f"{name}/layer {of_layer['layer']}": value for name, value in of_layer.items() if name != "layer"}
    values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    events.file_writer.add_summary(Summary(value=values), record.step)
