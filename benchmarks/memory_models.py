"""What a memory budget costs which model: dense or a mixture, and how well the speed is foreseen.

Two questions, both within control groups as in memory_budget.py:

- The scenario that people quote: a small dense model wholly in memory, a mixture half in memory, a dense model of the
  mixture's total size half in memory. Quoted for Llama 3 8B, Mixtral 8x7B and Llama 3 70B are 100, 3 to 5 and 0.5
  tokens a second; here the first two have the proportions of theirs, and the third has the size of the mixture.
- What `--memory` predicts before loading against what comes, over models, types and budgets. Tokens and weights are
  random, so that routers have no habits.

    python benchmarks/memory_models.py --out benchmarks/results/memory_models.json
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from cpu_inference import shapes, write_model
from environment import environment
from memory_budget import LIMIT_OVER_BUDGET, forget, in_group, show
from moekit.core import files
from moekit.kernels.packed import BLOCK_TYPES_BY_NAME

SCENARIO = (("dense-small", None), ("mixtral", 0.5), ("dense-deep", 0.5))
MODELS = ("mixtral", "fine", "dense-deep")
WITHIN = 0.25


class Models:
    """Files that are written when they are first asked for; only one is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, None

    def file(self, shape: str, kind: str) -> Path:
        """Give the file of a shape in a type."""
        path = self.folder / f"{shape}.{kind}.gguf"
        if path != self.path:
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            if not path.exists():
                write_model(shapes()[shape], BLOCK_TYPES_BY_NAME[kind], path)
            self.path = path
        return path


def measure(path: Path, share: float | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a model in a control group 5 % above its share of the file; None: all in memory, and no limit."""
    forget(path)
    size = path.stat().st_size
    budget = 0 if share is None else round(share * size)
    asked = [f"--{name}={getattr(arguments, name)}" for name in ("prompt", "steps", "context")]
    limit = round(LIMIT_OVER_BUDGET * budget) if budget else None
    found = in_group(sys.executable, "moekit", path, limit, [*asked, f"--budget={budget}"])
    name = path.name + (" in memory" if share is None else f" {share:.0%}")
    show(name, found, budget, expected="")
    return {"model": path.name, "bytes": size, "budget": budget, **found}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_0"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.7], help="of a model's file")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--models", type=Path, help="folder for the files; one is there at a time")
    parser.add_argument("--out", type=Path, help="JSON file that all figures are written to")
    arguments = parser.parse_args()
    found: dict[str, Any] = environment() | {"scenario": [], "combinations": []}

    def keep() -> None:
        if arguments.out:
            files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        models = Models(arguments.models or Path(temporary))
        for shape, share in SCENARIO:
            found["scenario"].append(measure(models.file(shape, arguments.types[0]), share, arguments))
            keep()
        speeds = [one.get("tokens_per_second", math.nan) for one in found["scenario"]]
        print("for 100 tokens of the small model: " + ", ".join(f"{100 * one / speeds[0]:.1f}" for one in speeds))
        for shape in MODELS:
            for kind in arguments.types:
                for share in arguments.shares:
                    found["combinations"].append(measure(models.file(shape, kind), share, arguments))
                    keep()
    ratios = [
        one["tokens_per_second"] / one["predicted"]["expected"] for one in found["combinations"] if one.get("predicted")
    ]
    close = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    print(f"{close} of {len(ratios)} within {WITHIN:.0%} of the prediction; got over predicted: ", end="")
    print(", ".join(f"{ratio:.2f}" for ratio in ratios))
    keep()


if __name__ == "__main__":
    main()
