"""How fast is a mixture-of-experts layer, beside a dense layer of the same FLOPs and transformers' Mixtral block?

Forward and backward, router included. All contestants take turns in one process, each round on a batch that is new to
all of them, as in training: the experts' loads differ from round to round. What is shown are medians over the rounds of
ratios within a round, so that a machine that is now faster, now slower treats all alike.

    python benchmarks/moe_layer.py --rounds 20 --out benchmarks/results/moe_layer.json

Run it on an idle machine. With OMP_WAIT_POLICY=passive, OpenMP's threads give up their cores while moekit's own work.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from environment import environment
from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig
from moekit.kernels.backends import Backend
from moekit.moe import MoELayer
from moekit.nn import FeedForward

try:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
except ImportError:
    MixtralSparseMoeBlock = None

TRANSFORMERS = ("eager", "grouped_mm")


@dataclass(frozen=True)
class Shape:
    """The shape of a layer: D model width, F expert width, E experts, K of them per token."""

    width: int
    hidden: int
    experts: int
    per_token: int

    def __str__(self) -> str:
        return ", ".join(map(str, asdict(self).values()))

    def flops(self, tokens: int) -> int:
        """Count FLOPs of the experts' products, forward and backward: 3 products, 3 times each, 2 per multiply-add."""
        return 18 * tokens * self.width * self.hidden * self.per_token


SHAPES = (Shape(256, 512, 8, 2), Shape(512, 1024, 8, 2), Shape(256, 256, 32, 4), Shape(512, 128, 64, 8))
# The same active FLOPs with ever more experts.
GROWING = tuple(Shape(512, 128, experts, 8) for experts in (8, 16, 32, 64, 128, 256))


class ThreeMatrices(nn.Module):
    """A dense gated feed-forward network of plain torch, with gate and up as matrices of their own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Compute the network's output."""
        return self.down(F.silu(self.gate(x_TD)) * self.up(x_TD))


def moekit_layer(shape: Shape, backend: Backend = "fastest") -> MoELayer:
    """Build a layer with Mixtral's router, without auxiliary losses: transformers' block has none."""
    config = MoEConfig(
        experts=shape.experts,
        expert_width=shape.hidden,
        router=SoftmaxTopKConfig(top_k=shape.per_token, balance_loss=0, z_loss=0),
    )
    return MoELayer(shape.width, config, vocab_size=1, backend=backend)


def mixtral_block(shape: Shape, implementation: str) -> nn.Module:
    """Build transformers' Mixtral block with that implementation of the experts."""
    config = MixtralConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
    )
    config._experts_implementation = implementation
    return MixtralSparseMoeBlock(config)


def contestants(shape: Shape, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Build all layers by name. Those with experts have the same weights, drawn from N(0, 1/D)."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "dense, three matrices": ThreeMatrices(shape.width, shape.hidden * shape.per_token),
        "dense, moekit": FeedForward(shape.width, DenseConfig(width=shape.hidden * shape.per_token)),
        "moekit": (ours := moekit_layer(shape)),
    }
    for layer in layers.values():
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=shape.width**-0.5)
    if MixtralSparseMoeBlock is not None:
        for implementation in TRANSFORMERS:
            block = mixtral_block(shape, implementation)
            with torch.no_grad():
                block.gate.weight.copy_(ours.router.weight)
                block.experts.gate_up_proj.copy_(ours.experts.gate_up_EGD)
                block.experts.down_proj.copy_(ours.experts.down_EDF)
            layers[f"transformers {implementation}"] = block
    return {name: layer.to(dtype) for name, layer in layers.items()}


def output(layer: nn.Module, x_TD: Tensor) -> Tensor:
    """Compute a layer's output, whatever else it returns."""
    if isinstance(layer, MoELayer):
        return layer(x_TD)[0]
    if MixtralSparseMoeBlock is not None and isinstance(layer, MixtralSparseMoeBlock):
        return layer(x_TD[None])[0]
    return layer(x_TD)


def forward_backward(layer: nn.Module, x_TD: Tensor, grad_y_TD: Tensor) -> float:
    """Time one forward and backward pass, in seconds."""
    layer.zero_grad(set_to_none=True)
    x_TD = x_TD.clone().requires_grad_()
    begin = time.perf_counter()
    output(layer, x_TD).backward(grad_y_TD)
    return time.perf_counter() - begin


def check_agreement(layers: dict[str, nn.Module], shape: Shape, dtype: torch.dtype) -> float | None:
    """Find the largest relative difference of moekit's output from transformers'; fail if they are two functions.

    In bfloat16 the routers of the two may choose differently between near equals, for single tokens.
    """
    if MixtralSparseMoeBlock is None:
        return None
    x_TD = torch.randn(512, shape.width, dtype=dtype)
    with torch.no_grad():
        ours = output(layers["moekit"], x_TD).double()
        errors_T = [
            (ours - output(layers[f"transformers {name}"], x_TD).double()).norm(dim=1) / ours.norm(dim=1)
            for name in TRANSFORMERS
        ]
    error = max(error_T.quantile(0.9).item() for error_T in errors_T)
    if error > (1e-4 if dtype == torch.float32 else 3e-2):
        raise SystemExit(f"moekit and transformers disagree by {error:.1e}: this would compare different functions")
    return error


def measure(shape: Shape, dtype: torch.dtype, tokens: int, rounds: int) -> dict[str, Any]:
    """Measure one row of the table, as data."""
    layers = contestants(shape, dtype)
    disagreement = check_agreement(layers, shape, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for round_ in range(rounds + 2):
        x_TD, grad_y_TD = torch.randn(2, tokens, shape.width, dtype=dtype)
        for name, layer in layers.items():
            took = forward_backward(layer, x_TD, grad_y_TD)
            if round_ >= 2:  # the first two warm up
                seconds[name].append(took)
    dense = min((name for name in layers if name.startswith("dense")), key=lambda name: median(seconds[name]))
    row: dict[str, Any] = {
        "shape": asdict(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "fastest_dense": dense,
        "dense_gflops": shape.flops(tokens) / median(seconds[dense]) / 1e9,
        "seconds": {name: median(times) for name, times in seconds.items()},
        "share_of_dense": {name: ratio(seconds[dense], seconds[name]) for name in layers if name != dense},
        "relative_difference_from_transformers": disagreement,
    }
    if MixtralSparseMoeBlock is not None:
        best = min((f"transformers {name}" for name in TRANSFORMERS), key=lambda name: median(seconds[name]))
        row["fastest_transformers"] = best
        row["times_transformers"] = ratio(seconds[best], seconds["moekit"])
    return row


def measure_growth(dtype: torch.dtype, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Measure what the layers of GROWING cost over the first, in rounds in which each takes its turn."""
    layers = []
    for shape in GROWING:
        layer = moekit_layer(shape)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=shape.width**-0.5)
        layers.append(layer.to(dtype))
    seconds: list[list[float]] = [[] for _ in layers]
    for round_ in range(rounds + 2):
        x_TD, grad_y_TD = torch.randn(2, tokens, GROWING[0].width, dtype=dtype)
        for layer, times in zip(layers, seconds, strict=True):
            took = forward_backward(layer, x_TD, grad_y_TD)
            if round_ >= 2:
                times.append(took)
    return [
        {"shape": asdict(shape), "seconds": median(times), "cost_over_first": ratio(times, seconds[0])}
        for shape, times in zip(GROWING, seconds, strict=True)
    ]


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Compute median and quartiles of the ratios of pairs taken in the same round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {"median": median(ratios), "low_quartile": low, "high_quartile": high}


def shown(value: dict[str, float] | None) -> str:
    """Write a ratio with its quartiles."""
    if value is None:
        return "-"
    return f"{value['median']:.2f} ({value['low_quartile']:.2f}-{value['high_quartile']:.2f})"


COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("D, F, E, K", 17, lambda row: ", ".join(map(str, row["shape"].values()))),
    ("dtype", 9, lambda row: row["dtype"]),
    ("dense GFLOP/s", 14, lambda row: f"{row['dense_gflops']:.0f}"),
    ("moekit", 18, lambda row: shown(row["share_of_dense"]["moekit"])),
    ("eager", 18, lambda row: shown(row["share_of_dense"].get("transformers eager"))),
    ("grouped_mm", 18, lambda row: shown(row["share_of_dense"].get("transformers grouped_mm"))),
    ("moekit / their best", 19, lambda row: shown(row.get("times_transformers"))),
)


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch (default 4096)")
    parser.add_argument("--rounds", type=int, default=20, help="batches measured, after two to warm up (default 20)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: quartiles need two or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    where = environment("transformers", "numpy")
    if MixtralSparseMoeBlock is None:
        print("transformers is not installed: moekit is compared with the dense layer alone\n")
    print("Speed as a share of the fastest dense layer's; ratios are medians over rounds (quartiles).\n")
    print("  ".join(name.ljust(size) for name, size, _ in COLUMNS))
    rows = []
    for dtype in arguments.dtypes:
        for shape in SHAPES:
            row = measure(shape, getattr(torch, dtype), arguments.tokens, arguments.rounds)
            rows.append(row)
            print("  ".join(text(row).ljust(size) for _, size, text in COLUMNS), flush=True)
    overall = math.prod(row["share_of_dense"]["moekit"]["median"] for row in rows) ** (1 / len(rows))
    print(f"\nmoekit runs at {overall:.2f} of the dense layer's speed (geometric mean)")
    print(f"\nCost of more experts at the same active FLOPs, {arguments.dtypes[-1]}, over the first:\n")
    growth = measure_growth(getattr(torch, arguments.dtypes[-1]), arguments.tokens, arguments.rounds)
    for entry in growth:
        print(f"{', '.join(map(str, entry['shape'].values())):<17}  {shown(entry['cost_over_first'])}", flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        found = {**where, "rounds": arguments.rounds, "rows": rows, "growth_dtype": arguments.dtypes[-1]}
        arguments.out.write_text(json.dumps({**found, "growth": growth}, indent=2) + "\n")


if __name__ == "__main__":
    main()
