"""Why short sequences train with plain products: torch's fused attention against `plain_attention`, with gradients.

    python benchmarks/attention.py --out benchmarks/results/attention.json

Both take turns in one process; a ratio above 1 means that plain products are faster. CPU only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from environment import environment
from moekit.nn import plain_attention

# (sequences, heads, key-value heads, tokens, head width): 4096 tokens each
SHAPES = ((32, 3, 1, 128, 64), (16, 4, 2, 256, 64), (8, 8, 4, 512, 64), (4, 8, 4, 1024, 64))


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute causal attention with torch's fused kernel."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def seconds(attention: Callable[..., Tensor], inputs: list[Tensor], towards: Tensor) -> float:
    """Time one forward and backward pass."""
    begin = time.perf_counter()
    torch.autograd.grad(attention(*inputs), inputs, towards)
    return time.perf_counter() - begin


def measure(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> dict[str, object]:
    """Compare both ways on one shape, in turns, and give a row."""
    batch, heads, kv_heads, tokens, width = shape
    inputs = [
        torch.randn(batch, h, tokens, width, dtype=dtype, requires_grad=True) for h in (heads, kv_heads, kv_heads)
    ]
    towards = torch.randn(batch, heads, tokens, width, dtype=dtype)
    scale = width**-0.5
    expected, got = fused_attention(*inputs), plain_attention(*inputs, scale)
    error = float((got - expected).double().norm() / expected.double().norm())
    pairs = [
        (seconds(fused_attention, inputs, towards), seconds(partial(plain_attention, scale=scale), inputs, towards))
        for _ in range(rounds + 2)
    ][2:]
    ratios = [fused / plain for fused, plain in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "sequences, heads, kv heads, tokens, head width": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "fused_over_plain_median": middle,
        "quartiles": [low, high],
        "relative_difference": error,
    }


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [measure(shape, dtype, arguments.rounds) for dtype in (torch.bfloat16, torch.float32) for shape in SHAPES]
    for row in rows:
        print(json.dumps(row))
    if arguments.out:
        arguments.out.write_text(json.dumps(environment() | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
