"""One training step of a small decoder in double, whole, cut, or on several ranks, and the gradient it had."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from tests.moe.routers import samples
from torch import Tensor, distributed

from moekit.config import AttentionConfig, ModelConfig, MoEConfig
from moekit.models import Decoder
from moekit.training import TrainingConfig, training_step

SEQUENCES, CONTEXT, VOCAB = 8, 12, 31
# Large coefficients, so that an error in an auxiliary loss shows in the gradient; no capacity, which counts by batch.
STEPS = {
    "softmax_top_k": {"balance_loss": 0.5, "z_loss": 0.1},
    "noisy_top_k": {"importance_loss": 0.5, "load_loss": 0.5, "z_loss": 0.1},
    "switch": {"jitter": 0.0, "balance_loss": 0.5, "z_loss": 0.1, "capacity_factor": None},
    "gshard": {"balance_loss": 0.5, "z_loss": 0.1, "capacity_factor": None},
    "sigmoid_bias": {},
    "hash": {},
    "sinkhorn": {"z_loss": 0.1},
}


@dataclass
class Step:
    """loss; the gradients by parameter; per MoE layer the sums of the batch; the buffers afterwards."""

    loss: float
    gradients: dict[str, Tensor]
    sums: list[dict[str, Tensor]]
    buffers: dict[str, Tensor]


@contextmanager
def noise_of_the_input() -> Iterator[None]:
    """Random numbers become functions of what they are added to, and so do not depend on how a batch is cut.

    Sinkhorn's bias, which depends on the whole batch, becomes zero.
    """

    def normal(like: Tensor) -> Tensor:
        return torch.sin(1000 * like.detach())

    def uniform(like: Tensor) -> Tensor:
        return (1000 * like.detach()).frac()

    with (
        mock.patch.object(torch, "randn_like", normal),
        mock.patch.object(torch, "rand_like", uniform),
        mock.patch("moekit.moe.routers.sinkhorn.sinkhorn_bias", lambda logits_TE, *_: torch.zeros_like(logits_TE[0])),
    ):
        yield


def decoder(*kinds: str, **changes: object) -> Decoder:
    """A layer for each kind of router, of unit-scale weights, always the same."""
    layers = tuple(
        MoEConfig(experts=4, expert_width=6, router=samples.config(kind, **(STEPS[kind] | changes))) for kind in kinds
    )
    config = ModelConfig(
        vocab_size=VOCAB,
        width=16,
        context=CONTEXT,
        attention=AttentionConfig(heads=2, kv_heads=1, head_width=8),
        layers=layers,
        init_std=0.3,
    )
    torch.manual_seed(5)
    model = Decoder(config).double()
    for layer in model.moe_layers:
        for parameter in layer.router.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """tokens_BT, and real_BT: sequences of unequal lengths, one of a single token, with nothing to predict."""
    tokens_BT = torch.randint(0, VOCAB, (SEQUENCES, CONTEXT + 1), generator=torch.Generator().manual_seed(2))
    lengths_B = torch.tensor([13, 5, 13, 2, 9, 12, 1, 3])
    return tokens_BT, torch.arange(CONTEXT + 1) < lengths_B[:, None]


def step(
    model: Decoder, tokens_BT: Tensor, real_BT: Tensor | None, micro_sequences: int, *, recompute: bool = False
) -> Step:
    """One step that leaves the weights alone."""
    config = TrainingConfig(
        steps=1,
        sequences=SEQUENCES,
        micro_sequences=micro_sequences,
        context=CONTEXT,
        learning_rate=1e-3,
        warmup_steps=1,
        clip_norm=1e30,
        recompute=recompute,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = {"tokens": tokens_BT} | ({} if real_BT is None else {"real": real_BT})
    result = training_step(model, optimizer, batch, config, 0.0)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Step(result.loss, gradients, result.sums, {name: b.clone() for name, b in model.named_buffers()})


def differences(got: Step, expected: Step, tolerance: float = 1e-10) -> list[str]:
    """In what the steps differ, in words; empty where they are equal."""
    found = []
    if not math.isclose(got.loss, expected.loss, rel_tol=tolerance):
        found.append(f"loss {got.loss} for {expected.loss}")
    if got.gradients.keys() != expected.gradients.keys():
        found.append("parameters with a gradient")
    for name, wanted in expected.gradients.items():
        error = (got.gradients[name] - wanted).norm() / wanted.norm().clamp(min=1e-30)
        if not error <= tolerance:
            found.append(f"gradient of {name}: {error:.1e}")
    for index, (own, wanted_sums) in enumerate(zip(got.sums, expected.sums, strict=True)):
        for name, wanted in wanted_sums.items():
            exact = name in ("tokens", "chosen", "computed", "first_choices")
            equal = torch.equal(own[name], wanted) if exact else torch.allclose(own[name], wanted, rtol=tolerance)
            if not equal:
                found.append(f"sum {name} of layer {index}")
    found += [
        f"buffer {name}" for name, wanted in expected.buffers.items() if not torch.equal(got.buffers[name], wanted)
    ]
    return found


def run_rank(rank: int, folder: str, first_parts: tuple[int, ...]) -> None:
    """One of two ranks: its part of the batch for every cut and router; its Steps go into a file in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    tokens_BT, real_BT = batch()
    steps = {}
    for first_part in first_parts:
        part = slice(0, first_part) if rank == 0 else slice(first_part, SEQUENCES)
        for kind in STEPS:
            with noise_of_the_input():
                steps[first_part, kind] = step(decoder(kind, kind), tokens_BT[part], real_BT[part], micro_sequences=2)
    distributed.destroy_process_group()
    torch.save(steps, Path(folder) / f"rank{rank}.pt")
