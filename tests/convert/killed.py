"""Run by test_streaming: a process that writes results in children which it kills, and starts again, many times.

killed.py FOLDER KILLS: writes FOLDER/whole undisturbed, then FOLDER/out0, out1, ... until so many were killed; prints
the numbers of the results that came to an end. Children are forked, so that importing torch costs no time in each.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from moekit.checkpoint import StoredTensors
from moekit.convert import streaming
from moekit.convert.partial import JOURNAL, partial_folder
from moekit.convert.streaming import Copy, Made, OutputTensor, write_tensors

streaming._CHUNK_BYTES, streaming._SYNC_BYTES = 16_384, 100_000


def tensors_of(source: StoredTensors) -> list[OutputTensor]:
    """60 tensors of 120 kB: copied rows on both sides of computed ones."""

    def computed(index: int) -> Made:
        def make() -> torch.Tensor:
            return torch.randn(100, 100, generator=torch.Generator().manual_seed(index))

        return Made(make, (100, 100), 40_000, f"seed {index}")

    return [
        OutputTensor(
            f"t{index:03}",
            torch.float32,
            (300, 100),
            (Copy(source, "a", 0, 150), computed(index), Copy(source, "a", 450)),
        )
        for index in range(60)
    ]


def write(source: Path, target: Path, pause: float) -> None:
    """Slowed down, so that kills fall everywhere."""
    write_tensors(
        target,
        tensors_of(StoredTensors.open(source)),
        shard_bytes=1_000_000,
        on_bytes=lambda size: time.sleep(pause),
        fill=lambda folder: (folder / "config.json").write_text("{}") and None,
    )


def start(source: Path, target: Path, pause: float) -> int:
    """A child that writes; gives its process id."""
    child = os.fork()
    if not child:
        try:
            write(source, target, pause)
            os._exit(0)
        except Exception:  # noqa: BLE001 - whatever it was, the test shows it
            traceback.print_exc()
        os._exit(1)
    return child


def ended(child: int, within: float) -> bool:
    """Wait for it so long; whether it came to its end, which has to be a good one."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.002)
    return False


def main(folder: Path, kills: int) -> None:
    source, draw, number = folder / "source", random.Random(5), 0
    assert ended(start(source, folder / "whole", 0), 100)
    while kills or partial_folder(folder / f"out{number}").exists():
        target = folder / f"out{number}"
        child = start(source, target, 0.0005)
        done = ended(child, draw.uniform(0.02, 0.4) if kills else 100)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills -= 1
            # Killed when all was done but its exit; with its journal still there, the next run has to take that away.
            done = target.exists() and not (target / JOURNAL).exists()
        if done:
            sys.stdout.write(f"{number}\n")
            number += 1


main(Path(sys.argv[1]), int(sys.argv[2]))
