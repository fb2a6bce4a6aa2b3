"""How often the verdict is false: comparisons whose truth is known, judged as real ones are.

    python benchmarks/verdict_null.py --out results.json                  # 2,000 comparisons of equals, a minute or two
    python benchmarks/verdict_null.py --out results.json --forms          # and many forms of noise, and effects, beside

A rival's false headline says that a mixture (or hybrid) is better where none is, the baseline's that dense is. Covered:
the interval of the difference in the headline holds the truth of the contestant that it is about.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.comparison.simulated_comparisons import NOISE, Setup, Tally, tally_of

from environment import environment

SEEDS = (2, 3, 5)
RIVALS = range(1, 8)
COMPARISONS = 2000


def equals() -> Iterator[tuple[str, Setup]]:
    """Give comparisons without any difference: one to seven rivals, two to five seeds, which do the same to all."""
    for seeds in SEEDS:
        for rivals in RIVALS:
            yield f"{rivals} rivals, {seeds} seeds", Setup(seeds=seeds, truth=[0.0] * (rivals + 1), shared=2.0)


def forms() -> Iterator[tuple[str, Setup]]:
    """Give forms of noise, and effects, each with two to five seeds."""
    nobody = [0.0] * 8
    kinds = ["dense", "moe", "hybrid", "moe", "dense", "hybrid", "dense", "moe"]
    setups = {
        **{f"noise: {name}": Setup(seeds=0, truth=nobody, noise=name) for name in NOISE},
        "noise: seeds do the same to all rivals": Setup(seeds=0, truth=nobody, of_rivals=3.0),
        "noise: four times the baseline's": Setup(seeds=0, truth=nobody, deviations=[4.0] + [1.0] * 7),
        "noise: four times one rival's": Setup(seeds=0, truth=nobody, deviations=[1.0] * 7 + [4.0]),
        "noise: four times that of half of all": Setup(seeds=0, truth=nobody, deviations=[1.0] * 4 + [4.0] * 4),
        "hybrids, and several dense ones of which one is far better": Setup(
            seeds=0, truth=[0.0, 0.0, 0.0, 0.0, -9.0, 0.0, 1.0, 0.0], kinds=kinds
        ),
        "effect: one rival better by 2": Setup(seeds=0, truth=[0.0, -2.0] + [0.0] * 6),
        "effect: one rival better by 6": Setup(seeds=0, truth=[0.0, -6.0] + [0.0] * 6),
        "effect: rivals from better by 2 to worse by 2": Setup(
            seeds=0, truth=[0.0, -2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0]
        ),
        "effect: all rivals worse by 3": Setup(seeds=0, truth=[0.0] + [3.0] * 7),
        "effect: one rival equals the baseline, six are worse by 1": Setup(seeds=0, truth=[0.0, 0.0] + [1.0] * 6),
    }
    for name, setup in setups.items():
        for seeds in SEEDS:
            yield f"{name}, {seeds} seeds", replace(setup, seeds=seeds)


def together(tallies: list[Tally]) -> dict[str, Any]:
    """Give means over all comparisons of several tallies."""
    count = sum(tally.comparisons for tally in tallies)
    shares = ("rival", "baseline", "covered", "decided")
    mean = {name: sum(getattr(tally, name) * tally.comparisons for tally in tallies) / count for name in shares}
    return {"comparisons": count, **mean}


def main() -> None:
    """Draw, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--comparisons", type=int, default=COMPARISONS, help="of equals, in all")
    parser.add_argument("--forms", action="store_true", help="draw 300 of each form of noise and effect, too")
    asked = parser.parse_args()
    began, found = time.monotonic(), {}
    setups = list(equals())
    each = -(-asked.comparisons // len(setups))
    for name, setup in setups:
        found[name] = tally_of(setup, each)
    of_equals = together(list(found.values()))
    print(f"equals: {of_equals}")
    if asked.forms:
        for name, setup in forms():
            found[name] = tally_of(setup, 300)
            print(f"{name}: {found[name]}", flush=True)
    record = {
        "environment": environment("numpy", "scipy"),
        "seconds": time.monotonic() - began,
        "unit": "effects in standard deviations of a run's noise; shares of comparisons",
        "equals": of_equals,
        "by_setup": {name: asdict(tally) for name, tally in found.items()},
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
