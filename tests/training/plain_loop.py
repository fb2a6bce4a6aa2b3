"""A training loop as anyone would write it, independent of moekit's: what moekit.training is held against.

B sequences, T tokens, E experts.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import SoftmaxTopKConfig
from moekit.models import Decoder
from moekit.moe import Routing


def cosine(peak: float, warmup: int, steps: int, floor: float = 0.1) -> Callable[[int], float]:
    """Rise to `peak` over `warmup` steps, then fall along a half cosine to `floor` times the peak at the last step."""

    def rate(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))

    return rate


def constant(peak: float, warmup: int) -> Callable[[int], float]:
    """Rise to `peak` over `warmup` steps and stay there."""
    return lambda step: peak * min(1.0, step / warmup)


def plain_loop(
    model: Decoder,
    batch: Callable[[int], Tensor],
    rate: Callable[[int], float],
    steps: int,
    *,
    bfloat16: bool,
    weight_decay: float = 0.1,
) -> Iterator[float]:
    """Train on tokens_BT of each step, the last of a row a target only, and give each step's loss in nats a token."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=rate(1),
        betas=(0.9, 0.95),
    )
    model.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        tokens_BT = batch(step)
        routings: list[Routing] = []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits_BTV = model(tokens_BT[:, :-1], routings=routings)
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + balance(model, routings)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def balance(model: Decoder, routings: list[Routing]) -> Tensor:
    """Compute the balance loss (Switch Transformer, eq. 4) and the z-loss (ST-MoE, eq. 5) of softmax routers."""
    total = torch.zeros(())
    for layer, routing in zip(model.moe_layers, routings, strict=True):
        config = layer.router.config
        assert isinstance(config, SoftmaxTopKConfig)
        share_E = routing.counts_E / routing.counts_E.sum()
        total = total + config.balance_loss * len(share_E) * (share_E * routing.probs_TE.mean(0)).sum()
        total = total + config.z_loss * routing.sums["z_squares"] / routing.probs_TE.shape[0]
    return total
