"""One optimiser step on a batch that may come in micro-batches and lie on several ranks: exact in every case.

A rank is one process of torch.distributed, where that is initialised; each gives its own part of the batch.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from moekit.models import Decoder
from moekit.moe import Decision, Routing, Sums, add_sums
from moekit.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """loss: mean cross entropy in nats, nothing added. sums: per MoE layer, of the whole batch."""

    loss: float
    sums: list[dict[str, Tensor]]


def new_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); weights that are vectors (norms, biases) do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def training_step(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    tokens_BT: Tensor,
    config: TrainingConfig,
    rate: float,
    real_BT: Tensor | None = None,
) -> StepResult:
    """One optimiser step at learning rate `rate` on tokens_BT, int64 (sequences, context + 1).

    real_BT: bool, False for padding (at the end of a sequence), which is neither predicted nor routed.
    The gradient is that of the mean over all real targets plus the routers' losses of the whole batch, however it is
    cut: those losses are not sums over tokens, so where there are several micro-batches a first pass without gradients
    counts what the routers choose, and the second chooses the same.
    Where the loss or a gradient is not finite, the weights stay as they were and the loss given is NaN.
    """
    micro_batches = list(torch.split(tokens_BT, config.micro_sequences))
    masks: Sequence[Tensor | None] = [None] * len(micro_batches)
    targets = torch.tensor(float(tokens_BT[:, 1:].numel()))
    if real_BT is not None:
        masks = list(torch.split(real_BT, config.micro_sequences))
        targets = real_BT[:, 1:].sum().float()
    _sum_over_ranks([targets])

    optimizer.zero_grad(set_to_none=True)
    decisions: list[list[Decision]] = [[] for _ in micro_batches]
    whole = None
    with_losses = any(layer.router.coefficients for layer in model.moe_layers)
    if with_losses and len(micro_batches) > 1:
        decisions = [[Decision() for _ in model.moe_layers] for _ in micro_batches]
        whole = _sums_beforehand(model, micro_batches, masks, decisions, config)
    parts: list[list[dict[str, Tensor]]] = []
    total = torch.zeros((), dtype=torch.float64)
    for micro_batch_BT, mask_BT, own_decisions in zip(micro_batches, masks, decisions, strict=True):
        routings: list[Routing] = []
        with matrix_precision(config.precision):
            log_prob_BT = model.log_prob(
                micro_batch_BT, routings, real_BT=mask_BT, decisions=own_decisions, recompute=config.recompute
            )
        if mask_BT is not None:
            log_prob_BT = log_prob_BT.masked_fill(~mask_BT[:, 1:], 0)
        loss = -log_prob_BT.sum() / targets
        total += loss.detach()
        parts.append([routing.sums for routing in routings])
        if with_losses:
            whole = whole or _over_ranks(parts)
            loss = loss + _auxiliary_loss(model, parts[-1], whole)
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    _sum_over_ranks([total, *gradients])
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    sums = whole or _over_ranks(parts)
    if not (math.isfinite(total.item()) and math.isfinite(norm.item())):
        return StepResult(loss=math.nan, sums=sums)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for layer, of_layer in zip(model.moe_layers, sums, strict=True):
        layer.router.after_step(of_layer)
    return StepResult(loss=total.item(), sums=sums)


def matrix_precision(precision: str) -> torch.autocast | nullcontext[None]:
    """A context in which matrix products run in `precision` ("float32" or "bfloat16") on the CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _sums_beforehand(
    model: Decoder,
    micro_batches: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    decisions: Sequence[list[Decision]],
    config: TrainingConfig,
) -> list[dict[str, Tensor]]:
    """The sums of the whole batch per MoE layer; fills the decisions. Noise drawn here is drawn again afterwards."""
    parts: list[list[dict[str, Tensor]]] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), matrix_precision(config.precision):
        for micro_batch_BT, mask_BT, own_decisions in zip(micro_batches, masks, decisions, strict=True):
            routings: list[Routing] = []
            model(
                micro_batch_BT[:, :-1],
                routings=routings,
                real_BT=None if mask_BT is None else mask_BT[:, :-1],
                decisions=own_decisions,
            )
            parts.append([routing.sums for routing in routings])
    return _over_ranks(parts)


def _auxiliary_loss(model: Decoder, own: Sequence[Sums], whole: Sequence[Sums]) -> Tensor:
    """The routers' losses of the whole batch, with the gradient of this micro-batch's part in it."""
    loss = torch.zeros(())
    for layer, own_sums, whole_sums in zip(model.moe_layers, own, whole, strict=True):
        joined = {name: whole_sums[name] - value.detach() + value for name, value in own_sums.items()}
        for value in layer.router.losses(joined).values():
            loss = loss + value
    return loss


def _over_ranks(parts: Sequence[Sequence[Sums]]) -> list[dict[str, Tensor]]:
    """The sums of the whole batch per MoE layer, from those of each micro-batch of this rank."""
    totals = [add_sums(of_layer) for of_layer in zip(*parts, strict=True)]
    _sum_over_ranks([value for of_layer in totals for value in of_layer.values()])
    return totals


def _sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks; where there is one process alone, that is the tensor."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in tensors:
            distributed.all_reduce(tensor)
