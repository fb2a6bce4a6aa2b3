"""How much does `moekit compare` train in its minutes, and where do they go: another moekit and this one, in turns.

Both run the same comparison: contestants, seeds and minutes. Shown are the tokens of all runs, the ratio of this
moekit's to the other's, how busy the cores were (processor time of all processes over wall clock times cores), and what
the time of the lanes went to. A lane is where one run is trained at a time; the other moekit may have a single one.

    python benchmarks/comparison_throughput.py --before ../before/.venv/bin/python --out throughput.json

Sittings that `--out` holds already are not repeated: the script goes on where it was killed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from environment import environment
from moekit.core.hardware import hardware

# Whom versions before know, too.
CONTESTANTS = "dense,moe,moe-fine,hybrid,dense-large,ngram"
_POLL_SECONDS = 0.05


@dataclass
class Watched:
    """A worker process as it was seen from outside, on the clock of `time.time`; began_steps: its log was there."""

    began: float
    folder: Path | None
    ended: float = 0.0
    began_steps: float | None = None

    @property
    def ended_steps(self) -> float | None:
        """When the state was written for the last time; None where there is none, as of an n-gram model."""
        state = self.folder and self.folder / "state.safetensors"
        return state.stat().st_mtime if state and state.exists() else None


@dataclass
class Sitting:
    """One comparison from start to end."""

    workers: dict[int, Watched] = field(default_factory=dict)
    most_at_once: int = 0

    def look(self, pid: int, root: Path) -> None:
        """Take in which workers there are now."""
        now, training = time.time(), 0
        for process in _children(pid):
            try:
                worker = self.workers.get(process.pid) or _worker(process, root)
            except psutil.Error:
                continue
            if worker is None:
                continue
            self.workers[process.pid] = worker
            worker.ended = now
            if worker.folder:
                training += 1
                if worker.began_steps is None and (worker.folder / "steps.jsonl").exists():
                    worker.began_steps = now
        self.most_at_once = max(self.most_at_once, training)


def _children(pid: int) -> Sequence[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


def _worker(process: psutil.Process, root: Path) -> Watched | None:
    """Read from its command line what a process is; a worker that measures speed has no folder."""
    words = process.cmdline()
    if len(words) < 6 or words[1] != "-m" or not words[2].endswith(".worker"):
        return None
    contestant, seed, *extra = words[4:]
    folder = None if extra else root / contestant / f"seed-{seed}"
    return Watched(began=process.create_time(), folder=folder)


def compare_once(python: str, arguments: Sequence[str], root: Path) -> dict[str, Any]:
    """Run a comparison with the moekit beside `python`, and give its figures."""
    command = [str(Path(python).with_name("moekit")), "compare", *arguments, "--out", str(root)]
    sitting, began = Sitting(), time.time()
    with Path(f"{root}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            sitting.look(process.pid, root)
            time.sleep(_POLL_SECONDS)
    wall = time.time() - began
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{Path(f'{root}.log').read_text(errors='replace')[-2000:]}")
    results = json.loads((root / "results.json").read_text())
    runs = [run for contestant in results["contestants"] for run in contestant["runs"]]
    tokens = sum(run["tokens"] for run in runs)
    # What the tree's processes took, whoever waited for them.
    processor = usage.ru_utime + usage.ru_stime
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "tokens_per_run": results["settings"]["tokens"],
        "wall_seconds": wall,
        "processor_seconds": processor,
        "cores_busy": processor / wall / hardware().cores,
        "lanes": sitting.most_at_once,
        "lane_time": lane_time(sitting, sum(run["seconds"] or 0.0 for run in runs), began, wall),
    }


def lane_time(sitting: Sitting, step_seconds: float, began: float, wall: float) -> dict[str, float]:
    """Give the share of the lanes' time that each phase took; they add up to 1.

    planning: all before the first run starts, measuring of speeds included. starts: of processes, up to the first
    step. steps: training alone. on the way: evaluation, drawing batches, saving. ends: what is measured of the trained
    model. idle: lanes without a run, while others have one. after: all that comes after the last run.
    """
    workers = [worker for worker in sitting.workers.values() if worker.folder]
    lanes = max(1, sitting.most_at_once)
    first, last = min(worker.began for worker in workers), max(worker.ended for worker in workers)
    starts = on_the_way = ends = 0.0
    for worker in workers:
        begin, end = worker.began_steps or worker.began, worker.ended_steps or worker.ended
        starts += begin - worker.began
        on_the_way += end - begin
        ends += worker.ended - end
    spent = {
        "planning": lanes * (first - began),
        "starts": starts,
        "steps": step_seconds,
        "on the way": on_the_way - step_seconds,
        "ends": ends,
        "idle": lanes * (last - first) - sum(worker.ended - worker.began for worker in workers),
        "after": lanes * (began + wall - last),
    }
    return {phase: seconds / lanes / wall for phase, seconds in spent.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a Python that has the other moekit installed")
    parser.add_argument("--contestants", default=CONTESTANTS)
    parser.add_argument("--minutes", type=float, help="of each comparison; by default those of `moekit compare`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="xs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    arguments = ["--contestants", options.contestants, "--seeds", str(options.seeds), "--size", options.size]
    if options.minutes is not None:
        arguments += ["--budget", f"{round(60 * options.minutes)}s"]
    found: dict[str, Any] = {"arguments": arguments, "before": [], "now": []}
    if options.out.exists() and (kept := json.loads(options.out.read_text()))["arguments"] == arguments:
        found = kept
    for index in range(options.rounds):
        for name in ("before", "now") if index % 2 == 0 else ("now", "before"):
            if len(found[name]) > index:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                python = options.before if name == "before" else sys.executable
                found[name].append(compare_once(python, arguments, Path(temporary) / "run"))
            options.out.write_text(json.dumps(environment() | found, indent=1) + "\n")
            show(name, found[name][-1])
    ratios = [
        now["tokens_per_second"] / before["tokens_per_second"]
        for before, now in zip(found["before"], found["now"], strict=True)
    ]
    found["tokens_per_second_now_over_before"] = ratios
    options.out.write_text(json.dumps(environment() | found, indent=1) + "\n")
    print(f"{fmean(ratios):.2f} times the tokens a second of wall clock")


def show(name: str, sitting: dict[str, Any]) -> None:
    """Print a sitting's figures."""
    print(
        f"{name}: {sitting['tokens']:,} tokens in {sitting['wall_seconds']:.0f} s, "
        f"{sitting['lanes']} run(s) at a time, {sitting['cores_busy']:.2f} of the cores busy"
    )
    print("  " + ", ".join(f"{phase} {100 * share:.0f} %" for phase, share in sitting["lane_time"].items()))


if __name__ == "__main__":
    main()
