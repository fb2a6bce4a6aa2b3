"""What keeps a router balanced, and what does it cost? The contestants of stability.yaml, summed up by layer and step.

Runs `moekit compare --contestants benchmarks/stability.yaml` and condenses what it leaves behind: how uneven the load
was while the model trained (steps.jsonl), how many experts were dead, loss spikes, final held-out bits per byte.

    python benchmarks/stability.py --tokens 300k --seeds 3 --out benchmarks/results/stability.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from environment import environment
from moekit.comparison.results_schema import ContestantResults, Run, read_results
from moekit.comparison.spec.comparison_folder import ComparisonFolder

# A layer is uneven in a step where its busiest expert has more than this times its share.
UNEVEN = 2.0


def routing_of(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Summarise one run: the load's max / mean early, late and at its worst layer, dead experts, logits."""
    layers = [layer for step in steps for layer in step["layers"]]
    late = [layer for step in steps[-len(steps) // 4 :] for layer in step["layers"]]
    early = [layer for step in steps[: max(1, len(steps) // 4)] for layer in step["layers"]]
    return {
        "load_first_quarter": fmean(layer["load_max_over_mean"] for layer in early),
        "load_last_quarter": fmean(layer["load_max_over_mean"] for layer in late),
        "load_worst": max(layer["load_max_over_mean"] for layer in layers),
        "uneven_share": fmean(layer["load_max_over_mean"] > UNEVEN for layer in layers),
        "dead_experts_worst": max(layer["dead_experts"] for layer in layers),
        "logit_norm_last_quarter": fmean(layer["logit_norm"] for layer in late),
    }


def row(folder: ComparisonFolder, contestant: ContestantResults) -> dict[str, Any]:
    """Summarise one contestant: means over its runs, its bits per byte also run by run."""

    def steps(run: Run) -> list[dict[str, Any]]:
        lines = (folder.run(contestant.name, run.seed) / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    done = [run for run in contestant.runs if run.status == "done"]
    routing = [routing_of(steps(run)) for run in done]
    return {
        "name": contestant.name,
        "description": contestant.description,
        "bits_per_byte": [run.bits_per_byte for run in done],
        "failed": len(contestant.runs) - len(done),
        "spikes": sum(run.loss_spikes for run in contestant.runs),
        "warnings": sum(len(run.warnings) for run in contestant.runs),
        **{name: fmean(figures[name] for figures in routing) for name in (routing[0] if routing else {})},
    }


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="300k", help="of each run (default 300k)")
    parser.add_argument("--seeds", default="3", help="runs of each contestant (default 3)")
    parser.add_argument("--folder", type=Path, help="keep the comparison here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    arguments = parser.parse_args()
    where = environment("numpy")
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary) / "run"
        contestants = Path(__file__).with_name("stability.yaml")
        moekit = Path(sys.executable).with_name("moekit")
        options = [
            "--contestants",
            contestants,
            "--tokens",
            arguments.tokens,
            "--seeds",
            arguments.seeds,
            "--out",
            root,
        ]
        subprocess.run([moekit, "compare", *options], check=True)
        folder = ComparisonFolder(root)
        results = read_results(folder.results)
        rows = [row(folder, contestant) for contestant in results.contestants]
    print("\nLoad: the busiest expert's tokens over the mean, 1 is even.\n")
    heads = ("bits/byte", "first quarter", "last quarter", "worst", "dead", "spikes", "|logits|")
    print(f"{'':16}" + "".join(f"{head:>14}" for head in heads))
    for each in rows:
        figures = (
            fmean(each["bits_per_byte"]),
            *(each[name] for name in ("load_first_quarter", "load_last_quarter", "load_worst", "dead_experts_worst")),
            each["spikes"],
            each["logit_norm_last_quarter"],
        )
        print(f"{each['name']:16}" + "".join(f"{figure:14.3f}" for figure in figures))
    if arguments.out:
        found = {**where, "settings": results.settings.model_dump(mode="json"), "rows": rows}
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
