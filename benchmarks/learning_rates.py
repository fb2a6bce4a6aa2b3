"""Does the comparison's one rule for learning rates serve every contestant, at the default length and beyond?

Each contestant of the default set that learns by gradient descent is trained at several multiples of the rule's rate,
one run each; since the rate is constant and the weights are averaged, a run's curve gives every shorter length too.
What is shown is the regret: how many bits per byte the rule's rate ends above the contestant's best of those tried.

    python benchmarks/learning_rates.py --steps 500 1500 --out benchmarks/results/learning-rates.json

As many runs at a time as there are cores, with one thread each. Each run is written into --out as it ends; the same
command goes on where it was stopped.
"""

import argparse
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from comparison_training import constant_rate_run
from environment import environment
from moekit.comparison.spec.contestant_selection import pick_contestant
from moekit.comparison.spec.contestants import SIZES, default_set
from moekit.config import NGramConfig
from moekit.core import files
from moekit.data import large_enough, load_corpus
from moekit.models import build

PEAKS = (0.25, 0.5, 1.0, 2.0, 4.0)


def trained(contestant: str, peak: float, seed: int, size_name: str, steps: tuple[int, ...]) -> dict[str, float]:
    """Train one contestant at that multiple of the rule's rate: bits per byte by step."""
    torch.set_num_threads(1)
    size = SIZES[size_name]
    corpus = large_enough(load_corpus(()), sequences=size.sequences, context=size.context)
    torch.manual_seed(seed)
    model = build(pick_contestant(contestant, size).config(size))
    points = constant_rate_run(model, size, corpus, peak=peak, seed=seed, measure_at=steps)
    return {str(point.step): point.bits_per_byte for point in points}


def regrets(runs: dict[str, dict[str, float]], contestants: list[str], seeds: int, step: int) -> list[dict[str, Any]]:
    """Say for each contestant which rate was best after `step` steps, and what the rule's costs over it."""
    rows = []
    for contestant in contestants:
        means = {
            peak: statistics.fmean(runs[key(contestant, peak, seed)][str(step)] for seed in range(seeds))
            for peak in PEAKS
        }
        best = min(means, key=lambda peak: means[peak])
        rows.append(
            {
                "contestant": contestant,
                "steps": step,
                "bits_per_byte": {f"x{peak:g}": bits for peak, bits in means.items()},
                "best": best,
                "regret": means[1.0] - means[best],
            }
        )
    return rows


def key(contestant: str, peak: float, seed: int) -> str:
    """Name one run."""
    return f"{contestant} x{peak:g} seed {seed}"


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="xs")
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1500], help="lengths measured (500 1500)")
    parser.add_argument("--seeds", type=int, default=1, help="runs at each rate (default 1)")
    parser.add_argument("--contestants", nargs="+", help="names; by default all of the default set that learn")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, gone on with where it is there")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    everyone = [one for part in default_set(size) for one in part if not isinstance(one.config(size), NGramConfig)]
    contestants = arguments.contestants or [one.name for one in everyone]
    found: dict[str, Any] = {**environment(), "size": arguments.size, "steps": arguments.steps, "runs": {}}
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text(encoding="utf-8"))
        if (before["size"], before["steps"]) != (arguments.size, arguments.steps):
            parser.error(f"{arguments.out} holds runs of size {before['size']} and {before['steps']} steps")
        found["runs"] = before["runs"]
    wanted = [(name, peak, seed) for seed in range(arguments.seeds) for name in contestants for peak in PEAKS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = {
            pool.submit(trained, *one, arguments.size, tuple(arguments.steps)): key(*one)
            for one in wanted
            if key(*one) not in found["runs"]
        }
        for future in as_completed(running):
            name = running[future]
            found["runs"][name] = future.result()
            print(name, found["runs"][name], flush=True)
            files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")
    found["regrets"] = [
        row for step in arguments.steps for row in regrets(found["runs"], contestants, arguments.seeds, step)
    ]
    for row in found["regrets"]:
        print(f"{row['steps']:>6} {row['contestant']:<12} best x{row['best']:<5g} regret {row['regret']:.4f}")
    files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
