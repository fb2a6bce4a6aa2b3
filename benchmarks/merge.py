"""How long a merge takes and how much memory, against `cp` of its result on the same disk, and mergekit where it is.

Makes four dense bf16 models of random weights, merges them with drawn gates, and copies the result.

    python benchmarks/merge.py --parameters 0.84 --runs 3 --folder DIR [--mergekit VENV/bin/python] --out results.json
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from environment import environment
from moekit.config import AttentionConfig, DenseConfig, ModelConfig
from moekit.models import Decoder

# In a process of its own, whose peaks are its own: anonymous memory is what is not a file's.
RUN = """
import sys, threading, time
peak, done = 0, False
def watch():
    global peak
    while not done:
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"): peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.01)
thread = threading.Thread(target=watch); thread.start()
if sys.argv[1] == "moekit":
    from moekit.cli.merge import merge as main
    arguments = [sys.argv[2], "--out", sys.argv[3]]
else:
    from mergekit.scripts.moe import main
    arguments = [sys.argv[2], sys.argv[3], "--device", "cpu"]
begin = time.perf_counter()
try:
    main(arguments, standalone_mode=False)
finally:
    done = True
print("FIGURES", time.perf_counter() - begin, peak)
"""


def make_models(folder: Path, billions: float, count: int) -> Path:
    """Folders of Llama's shape of about so many parameters, and the merge's file; gives that."""
    depth = 16
    width = max(64, round((billions * 1e9 / depth / 13) ** 0.5 / 64) * 64)
    config = ModelConfig(
        vocab_size=32_000,
        width=width,
        context=2048,
        attention=AttentionConfig(heads=width // 64, kv_heads=width // 64, head_width=64),
        layers=(DenseConfig(width=3 * width),) * depth,
    )
    names = ["base", *(f"expert{index}" for index in range(count))]
    with torch.device("meta"):
        shapes = Decoder(config)
    for name in names:
        model = shapes.to_empty(device="cpu").bfloat16()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.02)
        model.save(folder / name)
    experts = [{"source_model": str(folder / name), "positive_prompts": [name]} for name in names[1:]]
    data = {"base_model": str(folder / "base"), "experts": experts, "gate_mode": "random", "dtype": "bfloat16"}
    file = folder / "merge.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def run(python: str, which: str, file: Path, out: Path) -> dict[str, float]:
    """Seconds until the result is on disk, of the whole process and of the merge, and the peak of anonymous memory."""
    begin = time.perf_counter()
    done = subprocess.run([python, "-c", RUN, which, file, out], capture_output=True, text=True, check=True)
    os.sync()
    whole = time.perf_counter() - begin
    seconds, peak = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES")).split()[1:]
    return {"seconds": whole, "inner_seconds": float(seconds), "anonymous_bytes": float(peak)}


def copy(source: Path, target: Path) -> dict[str, float]:
    """Seconds of `cp` until the copy is on disk."""
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
    os.sync()
    return {"seconds": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=0.84, help="of each model, in thousands of millions")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--mergekit", metavar="PYTHON", help="where mergekit 0.1.5 is installed")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args()
    record: dict[str, Any] = {"environment": environment("numpy"), "command": " ".join(sys.argv), "runs": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        root = Path(temporary)
        file = make_models(root, options.parameters, options.models)
        for _ in range(options.runs):
            found = {"moekit": run(sys.executable, "moekit", file, root / "merged")}
            record["result_bytes"] = sum(path.stat().st_size for path in (root / "merged").iterdir())
            found["cp"] = copy(root / "merged", root / "copy")
            if options.mergekit:
                found["mergekit"] = run(options.mergekit, "mergekit", file, root / "theirs")
            for name in ("merged", "copy", "theirs"):
                shutil.rmtree(root / name, ignore_errors=True)
            record["runs"].append(found)
    record["times_of_cp"] = {
        name: statistics.median(one[name]["seconds"] / one["cp"]["seconds"] for one in record["runs"])
        for name in record["runs"][0]
    }
    text = json.dumps(record, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
