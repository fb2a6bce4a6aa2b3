"""How much of the future does each router let through?

The last 8 of 24 tokens of 16 sequences are changed, and the logits before them looked at, relative to their standard
deviation. The model is a decoder of two layers, its weights as they are drawn, in fp64.

    python benchmarks/leak.py --out benchmarks/results/leak.json
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from environment import environment
from moekit.config import (
    AnyRouterConfig,
    AttentionConfig,
    ExpertChoiceConfig,
    GShardConfig,
    HashConfig,
    ModelConfig,
    MoEConfig,
    NoisyTopKConfig,
    SigmoidBiasConfig,
    SinkhornConfig,
    SoftmaxTopKConfig,
    SwitchConfig,
)
from moekit.models import Decoder

CONTEXT, VOCAB, KEPT, SEQUENCES = 24, 31, 16, 16
# Matrix products of other sizes may round otherwise; everything larger is a leak.
ROUNDING = 1e-12

CASES: dict[str, tuple[AnyRouterConfig, bool]] = {
    "softmax_top_k": (SoftmaxTopKConfig(top_k=2), False),
    "noisy_top_k": (NoisyTopKConfig(top_k=2), False),
    "switch, dropless": (SwitchConfig(capacity_factor=None), False),
    "gshard, dropless": (GShardConfig(capacity_factor=None), False),
    "sigmoid_bias": (SigmoidBiasConfig(top_k=2), False),
    "hash": (HashConfig(), False),
    "sinkhorn": (SinkhornConfig(top_k=2), False),
    "softmax_top_k, capacity 0.5": (SoftmaxTopKConfig(top_k=2, capacity_factor=0.5), False),
    "noisy_top_k, capacity 0.5": (NoisyTopKConfig(top_k=2, capacity_factor=0.5), False),
    "switch, capacity 0.5": (SwitchConfig(capacity_factor=0.5), False),
    "sigmoid_bias, capacity 0.5": (SigmoidBiasConfig(top_k=2, capacity_factor=0.5), False),
    "hash, capacity 0.5": (HashConfig(capacity_factor=0.5), False),
    "expert_choice": (ExpertChoiceConfig(mean_experts=2, leaky=True), False),
    "sinkhorn in training": (SinkhornConfig(top_k=2), True),
    "gshard, capacity 1": (GShardConfig(), False),
}


def changes(router: AnyRouterConfig, *, training: bool) -> list[float]:
    """Compute for each sequence the largest change of a logit before the tokens that changed."""
    torch.manual_seed(3)
    model = Decoder(
        ModelConfig(
            vocab_size=VOCAB,
            width=16,
            context=CONTEXT,
            attention=AttentionConfig(heads=2, kv_heads=1, head_width=8),
            layers=(MoEConfig(experts=4, expert_width=8, router=router),) * 2,
            init_std=0.3,
        ),
        backend="reference",
    ).double()
    for layer in model.moe_layers:
        for parameter in layer.router.parameters():
            torch.nn.init.normal_(parameter)
    model.train(training)
    tokens_BT = torch.randint(0, VOCAB, (SEQUENCES, CONTEXT), generator=torch.Generator().manual_seed(1))
    other_BT = torch.cat((tokens_BT[:, :KEPT], (tokens_BT[:, KEPT:] + 5) % VOCAB), 1)
    before, after = (_logits(model, rows_BT) for rows_BT in (tokens_BT, other_BT))
    moved: list[float] = ((after - before).abs().amax((1, 2)) / before.std()).tolist()
    return moved


def _logits(model: Decoder, tokens_BT: Tensor) -> Tensor:
    """Compute logits one sequence at a time: the question is whether a text's own future leaks."""
    torch.manual_seed(9)
    with torch.no_grad():
        return torch.cat([model(row_T[None])[:, :KEPT] for row_T in tokens_BT])


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, (router, training) in CASES.items():
        moved = changes(router, training=training)
        leaking = [change for change in moved if change > ROUNDING]
        found[name] = {
            "sequences_changed": len(leaking),
            "sequences": len(moved),
            "median_largest_change": statistics.median(leaking) if leaking else 0.0,
        }
        print(f"{name:30} {len(leaking):2} of {len(moved)}  {found[name]['median_largest_change']:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({**environment(), "routers": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
