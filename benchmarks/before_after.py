"""Is this checkout as fast as another one, the commit before a large change say?

Both run the same GGUF files (random weights, the shapes of cpu_inference.py cut to a few layers) and the same layers,
each in a process of its own, in turns, so that a machine that slows down slows both. What is shown are medians over the
rounds of after / before in tokens a second: above 1 is faster now.

    python benchmarks/before_after.py --before ../before/.venv/bin/python --out benchmarks/results/before_after.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from cpu_inference import shapes, write_model
from environment import environment
from moekit.kernels.packed import BLOCK_TYPES_BY_NAME

# What both checkouts have: GGUFModel, NativeRunner and MoELayer under the same names.
RUN_FILE = """
import json, sys, time
from pathlib import Path
from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
stored = GGUFModel(Path(sys.argv[1]))
runner = NativeRunner(stored.config, stored.weights())
cache = runner.new_cache()
def prefill(length):
    cache.truncate(0)
    begin = time.perf_counter()
    runner.prefill(cache, [(7 * index) % 31_991 for index in range(length)])
    return length / (time.perf_counter() - begin)
prefill(64)
found = {f"prefill {length}": max(prefill(length) for _ in range(3)) for length in (128, 512)}
prefill(32)
best = 0.0
for _ in range(3):
    begin = time.perf_counter()
    for step in range(12):
        runner.decode([cache], [step])
    best = max(best, 12 / (time.perf_counter() - begin))
print(json.dumps(found | {"decode": best}))
"""
RUN_LAYERS = """
import json, time, torch
from moekit.config import MoEConfig, SoftmaxTopKConfig
from moekit.moe import MoELayer, RouterInput
found = {}
for width, hidden, experts, top_k in ((256, 512, 8, 2), (512, 1024, 8, 2), (256, 256, 32, 4), (512, 128, 64, 8)):
    config = MoEConfig(experts=experts, expert_width=hidden, router=SoftmaxTopKConfig(top_k=top_k))
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        torch.manual_seed(0)
        layer = MoELayer(width, config, 256, "torch")
        best = 0.0
        for _ in range(8):
            x = torch.randn(1, 4096, width, requires_grad=True)
            given = RouterInput(token_T=torch.zeros(4096, dtype=torch.int64), real_T=None, decision=None)
            begin = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                y, _ = layer(x, given)
            y.sum().backward()
            best = max(best, 4096 / (time.perf_counter() - begin))
        found[f"moe layer {width}, {hidden}, {experts}, {top_k}, {name}"] = best
print(json.dumps(found))
"""


def rates(python: str, code: str, *arguments: str) -> dict[str, float]:
    """Tokens a second, by what was done, in a process of its own."""
    done = subprocess.run([python, "-c", code, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ratios(before: str, rounds: int, code: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """After over before of each figure: the median of the rounds, and all of them."""
    found: dict[str, list[float]] = {}
    for index in range(rounds):
        pythons = (before, sys.executable) if index % 2 else (sys.executable, before)
        measured = {python: rates(python, code, *arguments) for python in pythons}
        for name, rate in measured[sys.executable].items():
            found.setdefault(name, []).append(rate / measured[before][name])
    return {name: {"ratio": median(values), "rounds": values} for name, values in found.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a Python that has the other checkout installed")
    parser.add_argument("--shapes", nargs="+", default=["dense-active", "mixtral"])
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_k", "bf16"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = ratios(options.before, options.rounds, RUN_LAYERS)
    for shape in options.shapes:
        config = shapes()[shape]
        config = config.model_copy(update={"layers": config.layers[: options.layers]})
        for kind in options.types:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                write_model(config, BLOCK_TYPES_BY_NAME[kind], path)
                of_file = ratios(options.before, options.rounds, RUN_FILE, str(path))
            found |= {f"{shape} {kind} {name}": value for name, value in of_file.items()}
    for name, value in found.items():
        print(f"{value['ratio']:.3f}  {name}")
    if options.out:
        result = environment() | {"layers": options.layers, "after_over_before": found}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
