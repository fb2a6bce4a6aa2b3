"""Run by tests: a process that writes results in children which it kills, and starts again, many times.

killed_writer.py FOLDER KILLS [MERGE.yaml]: writes FOLDER/whole/out undisturbed, then FOLDER/0/out, 1/out, ... until
so many were killed; prints the numbers of the results that came to an end. Results are merges where there is such a
file, else copies of FOLDER/source. Children are forked, so that importing torch costs no time in each.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.convert.merging.merge_config import read_merge_config
from moekit.convert.merging.merge_conversion import MergeOptions, plan_merging
from moekit.convert.storage import streaming_writer as streaming
from moekit.convert.storage.output_tensors import Copy, Made, OutputTensor
from moekit.convert.storage.partial_folder import JOURNAL, partial_folder
from moekit.convert.storage.streaming_writer import write_tensors
from moekit.core.progress import Advanced, ProgressEvent

streaming._CHUNK_BYTES, streaming._SYNC_BYTES = 4096, 40_000
torch.set_num_threads(1)  # threads of the parent would be missing in its children

Write = Callable[[Path, Callable[[int], None]], object]


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


def copies(source: Path) -> Write:
    tensors = tensors_of(StoredTensors.open(source))
    return lambda target, on_bytes: write_tensors(
        target,
        tensors,
        shard_bytes=1_000_000,
        on_bytes=on_bytes,
        fill=lambda folder: (folder / "config.json").write_text("{}") and None,
    )


def merged(recipe: Path) -> Write:
    """Planned anew in each child, gates and all, as a process of its own would."""

    def write(target: Path, on_bytes: Callable[[int], None]) -> None:
        def slowed(event: ProgressEvent) -> None:
            if isinstance(event, Advanced):
                on_bytes(event.done)

        options = MergeOptions(shard_bytes=100_000, seed=3)
        plan_merging(read_merge_config(recipe), options).run(target, slowed)

    return write


def start(write: Write, target: Path, pause: float) -> int:
    """A child that writes, slowed down so that kills fall everywhere; gives its process id."""
    child = os.fork()
    if not child:
        try:
            target.parent.mkdir(exist_ok=True)
            write(target, lambda size: time.sleep(pause))
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


def main(folder: Path, kills: int, write: Write) -> None:
    draw, number = random.Random(5), 0
    begin = time.monotonic()
    assert ended(start(write, folder / "whole" / "out", 0.0005), 100)
    whole = time.monotonic() - begin
    # Until one came to its end, however slow this machine is today.
    while kills or not number or partial_folder(folder / str(number) / "out").exists():
        target = folder / str(number) / "out"
        child = start(write, target, 0.0005)
        done = ended(child, draw.uniform(0, whole) if kills else 100)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills -= 1
            # Killed when all was done but its exit; with its journal still there, the next run has to take that away.
            done = target.exists() and not (target / JOURNAL).exists()
        if done:
            sys.stdout.write(f"{number}\n")
            number += 1


folder, kills, recipes = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
main(folder, kills, merged(Path(recipes[0])) if recipes else copies(folder / "source"))
