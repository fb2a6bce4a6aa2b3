"""How fast the default contestants decode as they are served, at the comparison's own size and at one no cache holds.

    python benchmarks/decode_as_served.py --out benchmarks/results/decode_as_served.json

Weights are random at both sizes, loads of experts even, or those of the comparison in `--results`; the n-gram model,
which is nothing without its counts, is left out. `dense-again` is `dense` under another name: its ratio says what the
measuring itself does. Ratios are of rounds in which contestants take turns, with 95 % intervals over rounds.
What a token reads, over its time, stands beside what this machine reads from memory at most: more cannot be at the
larger size, and much less says that something else takes the time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from environment import environment
from moekit.comparison.analysis.served_decoding import ratio_of
from moekit.comparison.results_schema import Decode, read_results
from moekit.comparison.run.serving.served_sizes import Aim, even_loads, measure_sizes, trained_loads
from moekit.comparison.run.serving.trained_models import measure_trained, save_served
from moekit.comparison.spec.contestants import SIZES, default_set
from moekit.comparison.spec.model_costs import costs_of
from moekit.config import LSTMConfig, ModelConfig, NGramConfig
from moekit.doctor import read_bandwidth
from moekit.kernels.packed.block_types import BLOCK_TYPES_BY_NAME
from moekit.models import build

Config = ModelConfig | LSTMConfig


def main() -> None:
    """Measure, print a table for each size, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="xs")
    parser.add_argument("--type", choices=BLOCK_TYPES_BY_NAME, default="bf16", help="of the larger models' weights")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of dense weights at the larger size")
    parser.add_argument("--seconds", type=float, default=120.0, help="for each size")
    parser.add_argument("--results", type=Path, help="of a comparison of that size, for the loads of experts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    required, optional = default_set(size)
    models = {one.name: one.config(size) for one in (*required, *optional)}
    # The same model twice, under two names: their ratio is 1 but for what the measuring itself does.
    models["dense-again"] = models["dense"]
    decoders = {name: config for name, config in models.items() if isinstance(config, ModelConfig)}
    small_configs = {name: config for name, config in models.items() if not isinstance(config, NGramConfig)}
    loads = {name: even_loads(config) for name, config in decoders.items()}
    if arguments.results:
        runs = {one.name: one.runs for one in read_results(arguments.results).contestants}
        loads |= {name: trained_loads(runs[name]) for name in decoders if name in runs}
    bandwidth = read_bandwidth()
    small = own_size(small_configs, size.context, arguments.seconds)
    began = time.monotonic()
    aim = Aim(
        kind=BLOCK_TYPES_BY_NAME[arguments.type],
        dense_bytes=arguments.gigabytes * 1e9,
        least_bytes=1e6,
        memory=0.7 * psutil.virtual_memory().available,
    )
    large = measure_sizes(decoders, "dense", loads, aim, arguments.seconds)
    grown = {name: one.decode for name, one in large.sizes.items()}
    record: dict[str, Any] = {
        "environment": environment(),
        "size": arguments.size,
        "read_bandwidth": bandwidth,
        "own_size": table("own size", small, small_configs, bandwidth),
        "larger_size": table("larger size", grown, {n: one.config for n, one in large.sizes.items()}, bandwidth),
        "larger_size_seconds": time.monotonic() - began,
        "left_out": large.left_out,
        "load_error": {name: one.load_error for name, one in large.sizes.items()},
    }
    print(f"Left out of the larger size: {large.left_out}. It took {record['larger_size_seconds']:.0f} s.")
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def own_size(configs: Mapping[str, Config], context: int, seconds: float) -> dict[str, Decode]:
    """Measure models of random weights as trained ones are: saved to folders, and loaded by what serves them."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {(name, 0): Path(temporary) / name for name in configs}
        for (name, _), folder in folders.items():
            torch.manual_seed(0)
            save_served(build(configs[name]), folder)
        prompt = torch.randint(1, 256, (context // 2,)).tolist()
        found = measure_trained(folders, prompt, tokens=context - len(prompt), seconds=seconds)
    return {name: decode for (name, _), decode in found.items()}


def table(title: str, decodes: Mapping[str, Decode], configs: Mapping[str, Config], bandwidth: float) -> dict[str, Any]:
    """Print a row a contestant, and give the rows."""
    print(f"\n{title}; this machine reads {bandwidth / 1e9:.1f} GB/s")
    print(
        f"{'':14}{'engine':>14}{'weights':>11}{'read':>10}{'median ms':>11}{'p95/med':>9}{'GB/s':>7}{'of it':>7}  ratio"
    )
    rows = {}
    for name, decode in decodes.items():
        times = np.concatenate(decode.round_ms)
        median, p95 = float(np.median(times)), float(np.quantile(times, 0.95))
        read = bytes_read(configs[name], decode)
        ratios = {other: ratio_of([(decode, theirs)]) for other, theirs in decodes.items() if other != name}
        against = ratios.get("dense")
        rows[name] = {
            "decode": decode.model_dump(exclude={"round_ms"}),
            "config": configs[name].model_dump(mode="json", exclude={"layers"}),
            "depth": len(getattr(configs[name], "layers", [])) or None,
            "costs": asdict(costs_of(configs[name], decode.context)),
            "ms_median": median,
            "ms_p95": p95,
            "round_medians_ms": [float(np.median(turn)) for turn in decode.round_ms],
            "bytes_read": read,
            "bandwidth_share": read / median * 1e3 / bandwidth,
            "ratios": {other: asdict(ratio) for other, ratio in ratios.items() if ratio},
        }
        shown = f"{against.ratio:.2f} ({against.low:.2f} to {against.high:.2f})" if against else ""
        print(
            f"{name:14}{f'{decode.engine} {decode.weight_type}':>14}{decode.weight_bytes / 1e6:>9.1f}MB"
            f"{read / 1e6:>8.1f}MB{median:>11.3f}{p95 / median:>9.2f}{read / median / 1e6:>7.1f}"
            f"{read / median * 1e3 / bandwidth:>7.0%}  {shown}"
        )
    return rows


def bytes_read(config: Config, decode: Decode) -> float:
    """Count the bytes that a token reads: active weights, of the embedding a row alone, and the KV cache."""
    costs = costs_of(config, decode.context)
    idle = 0 if config.tie_embeddings else costs.params_by_part["embedding"]
    assert costs.params_total is not None
    return decode.weight_bytes * (costs.params_active - idle) / costs.params_total + decode.cache_bytes


if __name__ == "__main__":
    main()
