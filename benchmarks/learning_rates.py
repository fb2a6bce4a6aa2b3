"""Does the comparison's one rule for learning rates serve every contestant, at the default length and beyond?

Each contestant of the default set that learns by gradient descent is trained at several multiples of the rule's rate
for runs of that length, and at more where the best lies at an end of them. What is shown is the regret: how many bits
per byte the rule's rate ends above the contestant's best of those tried.

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

from comparison_training import comparison_run, found_before, run_all
from moekit.comparison.spec.contestant_selection import pick_contestant
from moekit.comparison.spec.contestants import SIZES, default_set
from moekit.config import NGramConfig
from moekit.core import files
from moekit.data import large_enough, load_corpus
from moekit.models import build

# Of the rule's rate, to begin with.
PEAKS = (0.5, 1.0, 2.0)


def trained(contestant: str, peak: float, seed: int, size_name: str, steps: int) -> float:
    """Train one contestant at that multiple of the rule's rate: bits per byte at the end."""
    size = SIZES[size_name]
    corpus = large_enough(load_corpus(()), sequences=size.sequences, context=size.context)
    torch.manual_seed(seed)
    model = build(pick_contestant(contestant, size).config(size))
    factor = pick_contestant(contestant, size).rate_factor
    return comparison_run(model, size, corpus, peak=peak * factor, seed=seed, steps=steps)


def regret(runs: dict[str, float], contestant: str, peaks: list[float], seeds: int, steps: int) -> dict[str, Any]:
    """Say which rate is best for runs of so many steps, and what the rule's costs over it."""
    means = {
        peak: statistics.fmean(runs[key(contestant, peak, steps, seed)] for seed in range(seeds)) for peak in peaks
    }
    best = min(means, key=lambda peak: means[peak])
    return {
        "contestant": contestant,
        "steps": steps,
        "bits_per_byte": {f"x{peak:g}": bits for peak, bits in means.items()},
        "best": best,
        "regret": means[1.0] - means[best],
    }


def beyond(peaks: list[float], best: float) -> list[float]:
    """Widen what is tried where the best rate was the lowest or the highest of it."""
    lower = [peaks[0] / 2] if best == peaks[0] else []
    higher = [peaks[-1] * 2] if best == peaks[-1] else []
    return [*lower, *peaks, *higher]


def key(contestant: str, peak: float, steps: int, seed: int) -> str:
    """Name one run."""
    return f"{contestant} x{peak:g} {steps} steps seed {seed}"


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
    kinds = [(name, steps) for steps in arguments.steps for name in contestants]
    peaks = {kind: list(PEAKS) for kind in kinds}
    while True:
        wanted = {
            key(name, peak, steps, seed): (trained, (name, peak, seed, arguments.size, steps))
            for seed in range(arguments.seeds)
            for name, steps in kinds
            for peak in peaks[name, steps]
        }
        runs = run_all(arguments.out, found, wanted)
        rows = [regret(runs, name, peaks[name, steps], arguments.seeds, steps) for name, steps in kinds]
        found["regrets"] = rows
        files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")
        wider = {kind: beyond(peaks[kind], row["best"]) for kind, row in zip(kinds, rows, strict=True)}
        if wider == peaks:
            break
        peaks = wider
    for row in found["regrets"]:
        print(f"{row['steps']:>6} {row['contestant']:<12} best x{row['best']:<5g} regret {row['regret']:.4f}")


if __name__ == "__main__":
    main()
