"""Does the comparison's one rule for learning rates serve every contestant, at the default length and beyond?

Each contestant of the default set that learns by gradient descent is trained at several multiples of the rule's rate,
and at more where the best lies at an end of them. Since the rate is constant and the weights are averaged, a run's
curve gives every shorter length too. What is shown is the regret: how many bits per byte the rule's rate ends above the
contestant's best of those tried.

    python benchmarks/learning_rates.py --steps 500 1500 --out benchmarks/results/learning-rates.json

As many runs at a time as there are cores, with one thread each. Each run is written into --out as it ends; the same
command goes on where it was stopped.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from comparison_training import constant_rate_run, found_before, run_all
from moekit.comparison.spec.contestant_selection import pick_contestant
from moekit.comparison.spec.contestants import SIZES, default_set
from moekit.config import NGramConfig
from moekit.core import files
from moekit.data import large_enough, load_corpus
from moekit.models import build

# Of the rule's rate, to begin with.
PEAKS = (0.5, 1.0, 2.0)


def trained(contestant: str, peak: float, seed: int, size_name: str, steps: tuple[int, ...]) -> dict[str, float]:
    """Train one contestant at that multiple of the rule's rate: bits per byte by step."""
    size = SIZES[size_name]
    corpus = large_enough(load_corpus(()), sequences=size.sequences, context=size.context)
    torch.manual_seed(seed)
    model = build(pick_contestant(contestant, size).config(size))
    points = constant_rate_run(model, size, corpus, peak=peak, seed=seed, measure_at=steps)
    return {str(point.step): point.bits_per_byte for point in points}


def regret(
    runs: dict[str, dict[str, float]], contestant: str, peaks: list[float], seeds: int, step: int
) -> dict[str, Any]:
    """Say which rate was best after `step` steps, and what the rule's costs over it."""
    means = {
        peak: statistics.fmean(runs[key(contestant, peak, seed)][str(step)] for seed in range(seeds)) for peak in peaks
    }
    best = min(means, key=lambda peak: means[peak])
    return {
        "contestant": contestant,
        "steps": step,
        "bits_per_byte": {f"x{peak:g}": bits for peak, bits in means.items()},
        "best": best,
        "regret": means[1.0] - means[best],
    }


def beyond(peaks: list[float], rows: list[dict[str, Any]], contestant: str) -> list[float]:
    """Widen what is tried where the best rate, at any of the lengths, was the lowest or the highest of those tried."""
    best = {row["best"] for row in rows if row["contestant"] == contestant}
    lower = [peaks[0] / 2] if peaks[0] in best else []
    higher = [peaks[-1] * 2] if peaks[-1] in best else []
    return [*lower, *peaks, *higher]


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
    found = found_before(arguments.out, {"size": arguments.size, "steps": arguments.steps})
    peaks = {name: list(PEAKS) for name in contestants}
    while True:
        wanted = {
            key(name, peak, seed): (trained, (name, peak, seed, arguments.size, tuple(arguments.steps)))
            for seed in range(arguments.seeds)
            for name in contestants
            for peak in peaks[name]
        }
        runs = run_all(arguments.out, found, wanted)
        found["regrets"] = [
            regret(runs, name, peaks[name], arguments.seeds, step) for step in arguments.steps for name in contestants
        ]
        files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")
        wider = {name: beyond(peaks[name], found["regrets"], name) for name in contestants}
        if wider == peaks:
            break
        peaks = wider
    for row in found["regrets"]:
        print(f"{row['steps']:>6} {row['contestant']:<12} best x{row['best']:<5g} regret {row['regret']:.4f}")


if __name__ == "__main__":
    main()
