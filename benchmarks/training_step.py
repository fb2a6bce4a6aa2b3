"""How fast is a mixture's whole training step beside that of the dense model of the same active FLOPs?

A step is what `moekit compare` does in one: draw the batch, forward, backward, clip, optimise, average the weights, log
what the routers did. All contestants take turns in one process, each on the same text. With `--before` another
checkout's Python does the same in a process of its own, in turns with this one. What is shown are medians over the
rounds of ratios within a round, so that a machine that is now faster, now slower treats all alike.

    python benchmarks/training_step.py --before ../before/.venv/bin/python --out benchmarks/results/training_step.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TextIO

import torch

from comparison_training import comparison_training
from environment import environment
from moekit.comparison.spec.contestants import SIZES, Contestant, Size, default_contestants
from moekit.config import MoEConfig, SoftmaxTopKConfig
from moekit.core import hardware
from moekit.data import Corpus, build_corpus, embedded_documents, training_batch
from moekit.models import build
from moekit.training import StepLog, Trainer

BASELINE = "dense"
WARMUP_STEPS = 4
STEPS_PER_TURN = 3


def contestants(size: Size) -> dict[str, Contestant]:
    """Describe who can take part, by name: the default set, and one with 64 experts."""
    fine = size.hidden // 4
    many = MoEConfig(experts=64, expert_width=fine, router=SoftmaxTopKConfig(top_k=4))
    return default_contestants(size) | {"moe-64": Contestant(name="moe-64", layers=(many,))}


class Runner:
    """Trains contestants a few steps at a time, in this process, and times them."""

    def __init__(self, folder: Path, open_files: ExitStack) -> None:
        self.folder, self.open_files = folder, open_files
        self.corpus: Corpus = build_corpus(embedded_documents(), name="embedded")
        self.trainers: dict[tuple[str, str], Trainer] = {}

    def seconds(self, size: str, name: str) -> float:
        """Time the fastest of a turn's steps; the first turn begins with some that are not timed."""
        trainer = self.trainers.get((size, name))
        steps = STEPS_PER_TURN
        if trainer is None:
            self.trainers = {key: kept for key, kept in self.trainers.items() if key[0] == size}
            trainer = self.trainers[size, name] = self._trainer(size, name)
            steps += WARMUP_STEPS
        return min([self._step(trainer) for _ in range(steps)][-STEPS_PER_TURN:])

    @staticmethod
    def _step(trainer: Trainer) -> float:
        begin = time.perf_counter()
        trainer._step()
        return time.perf_counter() - begin

    def _trainer(self, size: str, name: str) -> Trainer:
        shape = SIZES[size]
        torch.manual_seed(0)
        model = build(contestants(shape)[name].config(shape))
        training = comparison_training(model.config, steps=10**6, sequences=shape.sequences, warmup_steps=50)

        def batch(step: int) -> dict[str, torch.Tensor]:
            windows_BT = training_batch(
                self.corpus, step=step, sequences=shape.sequences, context=shape.context, seed=0
            )
            return {"tokens": windows_BT}

        log = StepLog(self.folder / f"{size}-{name}")
        trainer = Trainer(model.train(), training, batch, lambda model: 0.0, self.folder / "state", log)
        self.open_files.enter_context(log.going_on(0))
        return trainer


def serve(requests: TextIO, answers: TextIO) -> None:
    """Be the process that trains: a size and a name a line come in, seconds a step go out."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_files:
        runner = Runner(Path(folder), open_files)
        for line in requests:
            print(runner.seconds(*line.split()), file=answers, flush=True)


class Process:
    """A process of some checkout's Python that trains with so many threads."""

    def __init__(self, python: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def seconds(self, size: str, name: str) -> float:
        """Let it train a contestant for a turn, and give the seconds a step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(size, name, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(processes: dict[str, Process], size: str, names: list[str], rounds: int) -> dict[str, Any]:
    """Measure one size: for each contestant tokens a second, its share of the baseline's, and now over before."""
    seconds: dict[str, dict[str, list[float]]] = {who: {name: [] for name in names} for who in processes}
    for round_ in range(rounds):
        order = list(processes) if round_ % 2 else list(reversed(processes))
        for name in names:
            for who in order:
                seconds[who][name].append(processes[who].seconds(size, name))
    tokens = SIZES[size].sequences * SIZES[size].context
    rows: dict[str, Any] = {}
    for name in names:
        rows[name] = {"tokens_per_second": tokens / median(seconds["now"][name])}
        for who, of in seconds.items():
            suffix = "" if who == "now" else f"_{who}"
            rows[name][f"share_of_dense{suffix}"] = ratio(of[BASELINE], of[name])
        if "before" in seconds:
            rows[name]["now_over_before"] = ratio(seconds["before"][name], seconds["now"][name])
    return rows


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Describe ratios round by round: the median and the quartiles."""
    low, middle, high = quantiles([a / b for a, b in zip(above, below, strict=True)], n=4)
    return {"median": middle, "low_quartile": low, "high_quartile": high}


def show(size: str, threads: int, rows: dict[str, Any]) -> None:
    """Print the rows of one size as a table."""
    print(f"size {size}, {threads} thread{'s' if threads > 1 else ''}")
    for name, row in rows.items():
        figures = [f"{row['tokens_per_second']:10,.0f} tokens/s"]
        for key in ("share_of_dense", "share_of_dense_before", "now_over_before"):
            if key in row:
                figures.append("{median:5.2f} ({low_quartile:.2f} to {high_quartile:.2f}) ".format(**row[key]) + key)
        print(f"  {name:<12}" + "   ".join(figures), flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a Python that has another checkout installed")
    parser.add_argument("--sizes", nargs="+", default=["xs", "s", "m"], choices=list(SIZES))
    parser.add_argument("--contestants", nargs="+", default=["moe", "moe-fine", "moe-64"])
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, hardware.hardware().cores}))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(sys.stdin, sys.stdout)
        return
    where = environment()
    names = list(dict.fromkeys([BASELINE, *options.contestants]))
    pythons = {"now": sys.executable} | ({"before": options.before} if options.before else {})
    found = []
    for threads in options.threads:
        processes = {who: Process(python, threads) for who, python in pythons.items()}
        for size in options.sizes:
            rows = measure(processes, size, names, options.rounds)
            show(size, threads, rows)
            found.append({"size": size, "threads": threads, "contestants": rows})
        for process in processes.values():
            process.end()
    if options.out:
        result = where | {"rounds": options.rounds, "steps_per_turn": STEPS_PER_TURN, "training_steps": found}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
