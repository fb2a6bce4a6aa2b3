"""How fast a checkpoint gets into a model's parameters: moekit against plain reading and the safetensors library.

    python benchmarks/loading.py --out benchmarks/results/loading.json

Writes a folder of random bf16 weights, Llama-like (queries, keys and values are parts of one parameter of ours, and one
tensor in each layer is transposed), reads it once so that it is in the page cache, and then in turns, each in a fresh
process:

plain: the bytes of the files into one fresh buffer, which is the least that reading takes, by one thread and by two;
moekit: opening the folder, allocating the parameters and `read_weights`;
safetensors: `safetensors.torch.load_file` of every shard and a copy of every tensor into our parameters, as loading
into a model needs (load_file alone maps the files and reads nothing).

A ratio is the time over that of plain reading by one thread in the same round. Peak memory is the process's, less what
it held before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from environment import environment
from moekit.checkpoint.layout import Stored, View, stored
from moekit.checkpoint.read_weights import read_weights
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.write_weights import write_weights
from moekit.core.hardware import peak_resident_bytes, reset_peak_resident, resident_bytes

# Model width, width of keys and values, feed-forward width, vocabulary: about those of a 3 B model
D, KV, F, V = 3072, 1024, 8192, 128_256
LAYER_BYTES = 2 * (D * (2 * D + 2 * KV) + 3 * D * F + 2 * D + D * D // 16)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """List the shapes of our parameters."""
    found: dict[str, tuple[int, ...]] = {"embed": (V, D), "norm": (D,)}
    for i in range(layers):
        found |= {
            f"{i}.qkv": (D + 2 * KV, D),
            f"{i}.out": (D, D),
            f"{i}.gate": (F, D),
            f"{i}.up": (F, D),
            f"{i}.down": (D, F),
            f"{i}.small": (D // 16, D),
            f"{i}.norms": (2, D),
        }
    return found


def rows(begin: int, end: int) -> View:
    """Make the view of some rows."""
    return lambda tensor: tensor[begin:end]


def layout(layers: int) -> list[Stored]:
    """Describe how the stored tensors and our parameters are made of each other."""
    found = [stored("model.embed_tokens.weight", "embed"), stored("model.norm.weight", "norm")]
    for i in range(layers):
        prefix = f"model.layers.{i}"
        found += [
            stored(f"{prefix}.self_attn.q_proj.weight", f"{i}.qkv", rows(0, D)),
            stored(f"{prefix}.self_attn.k_proj.weight", f"{i}.qkv", rows(D, D + KV)),
            stored(f"{prefix}.self_attn.v_proj.weight", f"{i}.qkv", rows(D + KV, D + 2 * KV)),
            stored(f"{prefix}.self_attn.o_proj.weight", f"{i}.out"),
            stored(f"{prefix}.mlp.gate_proj.weight", f"{i}.gate"),
            stored(f"{prefix}.mlp.up_proj.weight", f"{i}.up"),
            stored(f"{prefix}.mlp.down_proj.weight", f"{i}.down"),
            stored(f"{prefix}.small.weight", f"{i}.small", lambda tensor: tensor.T),
            stored(f"{prefix}.input_layernorm.weight", f"{i}.norms", lambda tensor: tensor[0]),
            stored(f"{prefix}.post_attention_layernorm.weight", f"{i}.norms", lambda tensor: tensor[1]),
        ]
    return found


def allocated(layers: int) -> dict[str, Tensor]:
    """Allocate our parameters, uninitialised."""
    return {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes(layers).items()}


def write(folder: Path, layers: int) -> None:
    """Write a folder of random weights."""
    parameters = allocated(layers)
    for parameter in parameters.values():
        parameter.view(torch.int16).random_()
    write_weights(folder, layout(layers), parameters)


def files(folder: Path) -> list[Path]:
    """List the folder's files of weights."""
    return sorted(folder.glob("*.safetensors"))


def plain(folder: Path, threads: int) -> object:
    """Read 16 MB at a time into one buffer, for which numpy asks for huge pages, as moekit does."""
    sizes = [file.stat().st_size for file in files(folder)]
    buffer = memoryview(np.empty(sum(sizes), dtype=np.uint8))

    def jobs() -> Iterator[tuple[int, memoryview, int]]:
        start, step = 0, 16 << 20
        for file, size in zip(files(folder), sizes, strict=True):
            descriptor = os.open(file, os.O_RDONLY)
            for at in range(0, size, step):
                yield descriptor, buffer[start + at : start + min(at + step, size)], at
            start += size

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: os.preadv(job[0], [job[1]], job[2]), jobs()))
    return buffer


def moekit(folder: Path, layers: int) -> object:
    """Load the folder as moekit does."""
    parameters = allocated(layers)
    read_weights(parameters, layout(layers), StoredTensors.open(folder))
    return parameters


def safetensors(folder: Path, layers: int) -> object:
    """Load the folder with the safetensors library, and copy every tensor into our parameters."""
    parameters, entries = allocated(layers), {entry.name: entry for entry in layout(layers)}
    for file in files(folder):
        for name, tensor in load_file(file).items():
            part = entries[name].parts[0]
            part.of_ours(parameters[part.ours]).copy_(tensor)
    return parameters


LOADERS: dict[str, Callable[[Path, int], object]] = {
    "plain": lambda folder, layers: plain(folder, 1),
    "plain, two threads": lambda folder, layers: plain(folder, 2),
    "moekit": moekit,
    "safetensors": safetensors,
}


def measure(loader: str, folder: Path, layers: int) -> dict[str, float]:
    """Measure a loader in this process, which has done nothing else."""
    torch.empty(1).random_()  # what torch sets up at first use is not loading
    reset_peak_resident()
    before, begin = resident_bytes(), time.perf_counter()
    held = LOADERS[loader](folder, layers)
    seconds = time.perf_counter() - begin
    peak = peak_resident_bytes() - before
    assert held is not None
    return {"seconds": seconds, "peak_bytes": peak}


def in_turns(folder: Path, layers: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run the loaders in turns, each in a fresh process."""
    found: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
    for index in range(rounds + 1):
        for loader in LOADERS:
            command = [sys.executable, __file__, "--measure", loader, str(folder), str(layers)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if index:  # the first round fills the page cache
                found[loader].append(json.loads(output))
    return found


def summary(runs: dict[str, list[dict[str, float]]], weights_bytes: int) -> Iterator[dict[str, object]]:
    """Summarise the rounds, a row a loader."""
    for loader, measured in runs.items():
        ratios = [run["seconds"] / base["seconds"] for run, base in zip(measured, runs["plain"], strict=True)]
        yield {
            "loader": loader,
            "seconds": [run["seconds"] for run in measured],
            "bytes_per_second_median": weights_bytes / statistics.median(run["seconds"] for run in measured),
            "over_plain_median": statistics.median(ratios),
            "over_plain_range": [min(ratios), max(ratios)],
            "peak_over_weights": max(run["peak_bytes"] for run in measured) / weights_bytes,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        loader, folder, layers = options.measure
        print(json.dumps(measure(loader, Path(folder), int(layers))))
        return
    count = max(1, round((options.gigabytes * 1e9 - 2 * V * D) / LAYER_BYTES))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        write(Path(name), count)
        weights_bytes = sum(info.size for info in StoredTensors.open(Path(name)).values())
        found = list(summary(in_turns(Path(name), count, options.rounds), weights_bytes))
    for row in found:
        print(json.dumps(row))
    if options.out:
        result = {"weights_bytes": weights_bytes, "layers": count, "rows": found}
        options.out.write_text(json.dumps(environment("safetensors", "numpy") | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
