"""Which schedule of the learning rate serves which kind of model: constant with averaged weights, or a cosine?

`moekit compare` trains at a constant rate and measures an average of the weights, so that each point of a curve is what
a run of that length gives. A cosine to a tenth of the peak is what most papers train with. Both train the same models
from the same weights on the same batches, seed by seed; the cosine runs are those of a plain loop that shares nothing
with moekit's training (tests/training/plain_loop.py). Held-out text is that of a comparison's final figure.

    python benchmarks/schedules.py --steps 1000 --seeds 5 --out benchmarks/results/schedules.json

As many runs at a time as there are cores, with one thread each. Each run is written into --out as it ends; the same
command goes on where it was stopped.
"""

import argparse
import json
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any

import torch

from comparison_training import WARMUP_STEPS, comparison_run, found_before, held_out_bits_per_byte, run_all

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.training.plain_loop import cosine, plain_loop

from moekit.comparison.spec.comparison_plan import learning_rate_for
from moekit.comparison.spec.contestant_selection import pick_contestant
from moekit.comparison.spec.contestants import SIZES, Size
from moekit.core import files, hardware
from moekit.data import large_enough, load_corpus, training_batch
from moekit.models import Decoder, build

# Of the peak's rule; a cosine spends most of its steps below its peak, and likes a higher one.
PEAKS = (1.0, 2.0)


def model_of(contestant: str, size: Size, seed: int) -> Decoder:
    """Build the contestant with the weights that a comparison's run of that seed starts from."""
    torch.manual_seed(seed)
    model = build(pick_contestant(contestant, size).config(size))
    assert isinstance(model, Decoder)
    return model


def trained(contestant: str, schedule: str, peak: float, seed: int, steps: int, size_name: str) -> float:
    """Train one model and measure it: bits per byte of held-out text."""
    size = SIZES[size_name]
    corpus = large_enough(load_corpus(()), sequences=size.sequences, context=size.context)
    model = model_of(contestant, size, seed)
    if schedule == "constant":
        return comparison_run(model, size, corpus, peak=peak, seed=seed, steps=steps)
    draw = {"sequences": size.sequences, "context": size.context, "seed": seed}
    losses = plain_loop(
        model,
        lambda step: training_batch(corpus, step=step, **draw),
        cosine(peak * learning_rate_for(size.width, steps * size.sequences * size.context), WARMUP_STEPS, steps),
        steps,
        bfloat16=hardware.fastest_precision() == "bfloat16",
    )
    deque(losses, maxlen=0)
    return held_out_bits_per_byte(model, size, corpus)


def table(runs: dict[str, float], contestants: list[str], baseline: str, seeds: int) -> list[dict[str, Any]]:
    """Average over seeds, and hold each contestant against the baseline under the same schedule, seed by seed."""
    rows = []
    for schedule in ("constant", "cosine"):
        for peak in PEAKS:
            for contestant in contestants:
                figures = [runs[key(contestant, schedule, peak, seed)] for seed in range(seeds)]
                base = [runs[key(baseline, schedule, peak, seed)] for seed in range(seeds)]
                differences = [mine - theirs for mine, theirs in zip(figures, base, strict=True)]
                rows.append(
                    {
                        "schedule": schedule,
                        "peak_over_rule": peak,
                        "contestant": contestant,
                        "bits_per_byte": statistics.fmean(figures),
                        "deviation": statistics.stdev(figures) if seeds > 1 else None,
                        "against_baseline": statistics.fmean(differences),
                        "deviation_of_difference": statistics.stdev(differences) if seeds > 1 else None,
                    }
                )
    return rows


def key(contestant: str, schedule: str, peak: float, seed: int) -> str:
    """Name one run."""
    return f"{contestant} {schedule} x{peak:g} seed {seed}"


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="xs")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of a run (default 1000)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind (default 5)")
    parser.add_argument("--contestants", nargs="+", default=["dense", "moe"], help="the first is the baseline")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, gone on with where it is there")
    arguments = parser.parse_args()
    found = found_before(arguments.out, {"size": arguments.size, "steps": arguments.steps})
    wanted = {
        key(contestant, schedule, peak, seed): (
            trained,
            (contestant, schedule, peak, seed, arguments.steps, arguments.size),
        )
        for seed in range(arguments.seeds)
        for contestant in arguments.contestants
        for schedule in ("constant", "cosine")
        for peak in PEAKS
    }
    run_all(arguments.out, found, wanted)
    found["table"] = table(found["runs"], arguments.contestants, arguments.contestants[0], arguments.seeds)
    for row in found["table"]:
        print(
            f"{row['schedule']:<9} x{row['peak_over_rule']:g} {row['contestant']:<10} {row['bits_per_byte']:.4f}"
            f"  {row['against_baseline']:+.4f} ({row['deviation_of_difference'] or 0:.4f})"
        )
    files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
