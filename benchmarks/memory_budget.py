"""A model larger than its memory: does moekit stay within a budget, does it answer the same, and how fast?

Each run is a process of its own in a control group (version 1, which root may make) whose limit is 5 % above the
budget, page cache counted. What it has is looked at every 50 ms, through loading, a prompt and some tokens; its logits
are compared with those of a run that has all in memory, by their bytes. llama.cpp maps the same file within the same
limit. The bound is what the disk gives: the bytes that were missing, over its bandwidth, both measured in the run.

    python benchmarks/memory_budget.py --llama-python venv/bin/python --out benchmarks/results/memory_budget.json
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpu_inference import shapes, write_model

HERE = Path(__file__)
GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT_OVER_BUDGET = 1.05
LOOK_SECONDS = 0.05


def run_moekit(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, compute a prompt and some tokens; no budget: all in memory, as the file's own pages."""
    from moekit.core.progress import no_progress
    from moekit.families.gguf import GGUFModel
    from moekit.inference.native_runner import NativeRunner
    from moekit.placement import LoadedWeights, MemoryOptions, load_weights

    began = time.perf_counter()
    stored = GGUFModel(Path(path))
    loaded = LoadedWeights(weights=stored.weights())
    if options.budget:
        asked = MemoryOptions(budget=options.budget, policy=options.policy, prefetch=options.prefetch)
        loaded = load_weights(stored, asked, options.context, no_progress)
    runner = NativeRunner(stored.config, loaded.weights, options.context, loaded.streaming)
    found: dict[str, Any] = {"load_seconds": time.perf_counter() - began}
    if loaded.placed is not None:
        placement, speed, bandwidths = loaded.placed.placement, loaded.placed.speed, loaded.placed.bandwidths
        found |= {"places": placement.places, "blocks_in_memory": sum(placement.kept_blocks)}
        found |= {"predicted": speed and vars(speed), "bandwidths": bandwidths and vars(bandwidths)}
    draw, digest, cache = random.Random(0), hashlib.sha256(), runner.new_cache()
    began = time.perf_counter()
    digest.update(runner.prefill(cache, [draw.randrange(32_000) for _ in range(options.prompt)]).tobytes())
    found["prompt_tokens_per_second"] = options.prompt / (time.perf_counter() - began)
    before, began = runner.streaming_counts, time.perf_counter()
    for _ in range(options.steps):
        digest.update(runner.decode([cache], [draw.randrange(32_000)]).tobytes())
    seconds, after = time.perf_counter() - began, runner.streaming_counts
    found |= {"tokens_per_second": options.steps / seconds, "logits": digest.hexdigest()}
    reading, busy = 0, 0.0
    for kind in ("experts", "blocks"):
        counts = getattr(after, kind)
        if counts is not None:
            counted = {name: value - getattr(getattr(before, kind), name) for name, value in vars(counts).items()}
            found[kind] = counted
            reading, busy = reading + counted["bytes"], max(busy, counted["busy_seconds"])
    if reading:
        # The bytes that were missing, over the bandwidth at which they came: the seconds of reading. Where experts and
        # blocks are read beside each other, those of the longer of the two.
        found["share_of_bound"] = busy / seconds
    return found


def run_llama(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Let llama.cpp map the file and do the same."""
    import llama_cpp

    began = time.perf_counter()
    model = llama_cpp.Llama(path, n_ctx=options.context, n_batch=512, n_threads=2, n_threads_batch=2, verbose=False)
    found = {"load_seconds": time.perf_counter() - began}
    draw = random.Random(0)
    began = time.perf_counter()
    model.eval([draw.randrange(32_000) for _ in range(options.prompt)])
    found["prompt_tokens_per_second"] = options.prompt / (time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(options.steps):
        model.eval([draw.randrange(32_000)])
    return found | {"tokens_per_second": options.steps / (time.perf_counter() - began)}


def in_group(python: str, engine: str, path: Path, limit: int | None, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one engine in a control group of its own; None for no limit."""
    group = GROUPS / f"moekit-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        if limit is not None:
            (group / "memory.limit_in_bytes").write_text(str(limit))
        command = [python, str(HERE), "--child", engine, str(path), *arguments]
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        with subprocess.Popen(["sh", "-c", enter, "sh", *command], stdout=subprocess.PIPE, text=True) as process:
            most_resident = look(process)
            assert process.stdout
            said = process.stdout.read()
        if process.returncode:
            return {"failed": process.returncode}
        return json.loads(said.splitlines()[-1]) | {
            "most_resident": most_resident,
            "most_in_group": int((group / "memory.max_usage_in_bytes").read_text()),
        }
    finally:
        (group / "memory.force_empty").write_text("0")
        group.rmdir()


def look(process: "subprocess.Popen[str]") -> int:
    """Look at what a process has until it ends; give the most of it."""
    import psutil

    most, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most = max(most, watched.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(LOOK_SECONDS)
    return most


def forget(path: Path) -> None:
    """Take the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def show(name: str, found: dict[str, Any], budget: int, expected: str) -> None:
    """Print a run's figures."""
    if "failed" in found:
        print(f"{name:<28} ended with {found['failed']}", flush=True)
        return
    text = f"{name:<28} prompt {found['prompt_tokens_per_second']:7.1f}/s  decode {found['tokens_per_second']:6.2f}/s"
    if budget:
        text += f"  resident {found['most_resident'] / budget:.3f}, in group {found['most_in_group'] / budget:.3f}"
    if expected and "logits" in found:
        text += "  same" if found["logits"] == expected else "  OTHER LOGITS"
    if "experts" in found:
        counted = found["experts"]
        text += f"  hits {counted['hits'] / (counted['hits'] + counted['misses']):.2f}"
    if found.get("predicted") and "share_of_bound" in found:
        predicted = found["predicted"]
        text += f"  {found['share_of_bound']:.2f} of the disk's bound"
        text += f", predicted {predicted['expected']:.2f} ({predicted['slow']:.2f} to {predicted['fast']:.2f})"
    print(text, flush=True)


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mixtral", help="of benchmarks/cpu_inference.py (mixtral)")
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--model", type=Path, help="a file that was made before, for this shape and type")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.4, 0.53, 0.7, 0.85, 1.0], help="of the file")
    parser.add_argument("--compared", type=float, default=0.53, help="the share at which all ways are compared (0.53)")
    parser.add_argument("--policies", nargs="+", default=["lru", "lfu", "lfru", "static"])
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python")
    parser.add_argument("--out", type=Path, help="JSON file that all figures are written to")
    parser.add_argument("--budget", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--policy", default="lru", help=argparse.SUPPRESS)
    parser.add_argument("--prefetch", default="measured", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        engine, path = options.child
        print(json.dumps((run_moekit if engine == "moekit" else run_llama)(path, options)))
        return
    from environment import environment
    from moekit.core import files
    from moekit.kernels.packed import BLOCK_TYPES_BY_NAME

    with tempfile.TemporaryDirectory() as folder:
        path = options.model or Path(folder) / "model.gguf"
        if not path.exists():
            write_model(shapes()[options.shape], BLOCK_TYPES_BY_NAME[options.type], path)
        size = path.stat().st_size
        asked = [f"--{name}={getattr(options, name)}" for name in ("prompt", "steps", "context")]
        found: dict[str, Any] = environment() | {
            "shape": options.shape,
            "type": options.type,
            "bytes": size,
            "runs": {},
        }

        def run(name: str, python: str, engine: str, budget: int, *more: str) -> None:
            forget(path)
            limit = round(LIMIT_OVER_BUDGET * budget) if budget else None
            result = in_group(python, engine, path, limit, [*asked, *more])
            found["runs"][name] = result | {"budget": budget}
            show(name, result, budget, found["runs"]["whole"]["logits"])
            if options.out:
                files.write_text(options.out, json.dumps(found, indent=1) + "\n")

        run("whole", sys.executable, "moekit", 0)
        for share in options.shares:
            budget, all_ways = round(share * size), share == options.compared
            for policy in options.policies if all_ways else options.policies[:1]:
                for prefetch in ("off", "on", "measured") if all_ways and policy == "lru" else ("measured",):
                    more = [f"--budget={budget}", f"--policy={policy}", f"--prefetch={prefetch}"]
                    run(f"{share:.0%} {policy} ahead {prefetch}", sys.executable, "moekit", budget, *more)
            if all_ways and options.llama_python:
                run(f"{share:.0%} llama.cpp", options.llama_python, "llama", budget)


if __name__ == "__main__":
    main()
