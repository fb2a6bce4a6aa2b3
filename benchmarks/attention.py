"""How sequences train: torch's fused attention, `plain_attention` and the compiled one in turns, with gradients.

    python benchmarks/attention.py --out benchmarks/results/attention.json

They take turns in one process; a ratio above 1 means that the one named last is faster. CPU only. Compiled attention
takes queries, keys and values as rows of one matrix, as a layer has them; nothing is rotated.
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
from moekit.kernels.training.attention_passes import AttentionShape
from moekit.nn import plain_attention
from moekit.nn.fused_attention import fused_attention as compiled_attention

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
    error = float((got - expected).detach().double().norm() / expected.detach().double().norm())
    rows = torch.cat([part.detach().transpose(1, 2).flatten(2) for part in inputs], -1).requires_grad_()
    compiled = partial(
        compiled_attention, angles=None, shape=AttentionShape(heads=heads, kv_heads=kv_heads, scale=scale)
    )
    turns = [
        (
            seconds(fused_attention, inputs, towards),
            seconds(partial(plain_attention, scale=scale), inputs, towards),
            seconds(compiled, [rows], towards.transpose(1, 2).flatten(2)),
        )
        for _ in range(rounds + 2)
    ][2:]
    low, middle, high = statistics.quantiles([fused / plain for fused, plain, _ in turns], n=4)
    return {
        "sequences, heads, kv heads, tokens, head width": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "fused_over_plain_median": middle,
        "quartiles": [low, high],
        "fused_over_compiled_median": statistics.median(fused / ours for fused, _, ours in turns),
        "plain_over_compiled_median": statistics.median(plain / ours for _, plain, ours in turns),
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
