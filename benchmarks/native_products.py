"""What the native products reach: bandwidth with few rows of activations, arithmetic with many.

    python benchmarks/native_products.py --out benchmarks/results/native-products.json

Few rows (1, 4, 8): bytes of the packed matrix a second, and their share of the read bandwidth measured in between; the
matrices are larger than the last cache. Many rows (32, 128, 512): FLOP a second, dequantisation included, and the
share of torch's product of bf16 matrices of that shape. Best of many short rounds, in turns, since others may use the
machine. CPU only.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from environment import environment
from moekit.kernels.native import instruction_set, multiply, multiply_many, read_bandwidth
from moekit.kernels.packed import BLOCK_TYPES, BlockType, PackedMatrix

COLUMNS = 2048
FEW, MANY = (1, 4, 8), (32, 128, 512)


def random_matrix(kind: BlockType, rows: int) -> PackedMatrix:
    """Make bytes whose fp16 scales are 1 or close to it, whichever of a block's bytes they are: 0x3c3c is 1.06."""
    data_RB = np.full((rows, kind.row_bytes(COLUMNS)), 0x3C, np.uint8)
    return PackedMatrix(data_RB, kind, COLUMNS)


def seconds(work: Callable[[], object]) -> float:
    """Time a piece of work."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def few_rows(kind: BlockType, size: int, rounds: int) -> dict[str, object]:
    """Measure products of a few rows, beside the bandwidth of memory."""
    matrix = random_matrix(kind, size // kind.row_bytes(COLUMNS))
    fastest, bandwidth = dict.fromkeys(FEW, float("inf")), 0.0
    for _ in range(rounds):
        bandwidth = max(bandwidth, read_bandwidth(size, 1))
        for batch in FEW:
            x_BD = np.random.default_rng(0).standard_normal((batch, COLUMNS), np.float32)
            fastest[batch] = min(fastest[batch], seconds(lambda x_BD=x_BD: multiply(matrix, x_BD)))
    rates = {batch: matrix.data_RB.size / fastest[batch] for batch in FEW}
    return {
        "type": kind.name,
        "read_bytes_per_second": bandwidth,
        "bytes_per_second": rates,
        "share_of_bandwidth": {batch: rate / bandwidth for batch, rate in rates.items()},
    }


def many_rows(kind: BlockType, rows: int, rounds: int) -> dict[str, object]:
    """Measure products of many rows, beside torch's in bfloat16."""
    matrix = random_matrix(kind, rows)
    weights_RD = torch.randn(rows, COLUMNS).bfloat16()
    flops, share = {}, {}
    for tokens in MANY:
        x_TD = torch.randn(tokens, COLUMNS)
        x_TD, numbers_TD = x_TD.bfloat16(), x_TD.numpy()
        ours = theirs = float("inf")
        for _ in range(rounds):
            ours = min(ours, seconds(lambda numbers_TD=numbers_TD: multiply_many(matrix, numbers_TD)))
            theirs = min(theirs, seconds(lambda x_TD=x_TD: torch.mm(x_TD, weights_RD.T)))
        flops[tokens], share[tokens] = 2 * tokens * rows * COLUMNS / ours, theirs / ours
    return {"type": kind.name, "flop_per_second": flops, "times_torch_bf16": share}


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=256, help="of each matrix that few rows go through")
    parser.add_argument("--types", nargs="+", default=[kind.name for kind in BLOCK_TYPES])
    arguments = parser.parse_args()
    kinds = [kind for kind in BLOCK_TYPES if kind.name in arguments.types]
    found: dict[str, object] = {"environment": environment(), "instruction_set": instruction_set()}
    found["few rows"] = few = []
    for kind in kinds:
        few.append(few_rows(kind, arguments.megabytes * 2**20, arguments.rounds))
        print(json.dumps(few[-1]))
    found["many rows"] = many = []
    for kind in kinds:
        many.append(many_rows(kind, 7168, arguments.rounds))
        print(json.dumps(many[-1]))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
