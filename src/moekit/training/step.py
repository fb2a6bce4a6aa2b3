"""One optimiser step on a batch that may come in micro-batches and lie on several ranks: exact in every case.

A rank is one process of torch.distributed, where that is initialised; each gives its own part of the batch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from moekit.core.freed_memory import keep_freed_memory
from moekit.models import LanguageModel
from moekit.models.encoder import NOT_PREDICTED
from moekit.models.language_model import is_bias
from moekit.moe import Decision, Routing, Sums, add_sums
from moekit.training.average import WeightAverage
from moekit.training.training_config import TrainingConfig
from moekit.training.update import gradient_norm, update_weights


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The outcome of an optimiser step.

    Attributes:
        loss: the mean cross entropy in nats, nothing added.
        sums: the sums of the whole batch, per MoE layer.
    """

    loss: float
    sums: list[dict[str, Tensor]]


def new_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov & Hutter, arXiv 1711.05101); norms and biases do not decay."""
    decays = {parameter: parameter.dim() >= 2 and not is_bias(name) for name, parameter in model.named_parameters()}
    groups = [
        {"params": [p for p, decay in decays.items() if decay], "weight_decay": config.weight_decay},
        {"params": [p for p, decay in decays.items() if not decay], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def training_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Tensor],
    config: TrainingConfig,
    rate: float,
    average: WeightAverage | None = None,
) -> StepResult:
    """Take one optimiser step at learning rate `rate` on a batch as `model.loss` takes it, rows first in every tensor.

    The average of the model's weights, where one is given, moves with them.

    The gradient is that of the mean over all targets plus the routers' losses of the whole batch, however it is cut:
    those losses are not sums over tokens, so where there are several micro-batches a first pass without gradients
    counts what the routers choose, and the second chooses the same. Where the loss or a gradient is not finite, the
    weights stay as they were and the loss given is NaN.
    """
    keep_freed_memory()  # what a step frees, the next takes
    device = next(model.parameters()).device
    micro_batches = _cut({name: tensor.to(device) for name, tensor in batch.items()}, config.micro_sequences)
    targets = torch.tensor(float(count_targets(batch)), device=device)
    _sum_over_ranks([targets])

    optimizer.zero_grad(set_to_none=True)
    passes = [_Pass(micro_batch, [], config) for micro_batch in micro_batches]
    whole = None
    with_losses = any(layer.router.coefficients for layer in model.moe_layers)
    if with_losses and len(micro_batches) > 1:
        passes = [replace(one, decisions=[Decision() for _ in model.moe_layers]) for one in passes]
        whole = _sums_beforehand(model, passes)
    parts: list[list[dict[str, Tensor]]] = []
    total = torch.zeros((), dtype=torch.float64, device=device)
    for one in passes:
        summed, routings = one.loss(model)
        loss = summed / targets
        total += loss.detach()
        parts.append([routing.sums for routing in routings])
        if with_losses:
            whole = whole or _over_ranks(parts)
            loss = loss + _auxiliary_loss(model, parts[-1], whole)
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    _sum_over_ranks([total, *gradients])
    norm = gradient_norm(model.parameters())
    sums = whole or _over_ranks(parts)
    if not (math.isfinite(total.item()) and math.isfinite(norm)):
        return StepResult(loss=math.nan, sums=sums)
    # Routers first: what they keep beside their weights is copied where the average follows.
    for layer, of_layer in zip(model.moe_layers, sums, strict=True):
        layer.router.after_step(of_layer)
    # As torch.nn.utils.clip_grad_norm_ has it.
    update_weights(optimizer, rate=rate, scale=min(1.0, config.clip_norm / (norm + 1e-6)), average=average)
    return StepResult(loss=total.item(), sums=sums)


def held_out_bits(model: LanguageModel, batches: Sequence[Mapping[str, Tensor]], config: TrainingConfig) -> float:
    """Compute the bits per prediction over those batches, of a model in evaluation mode."""
    nats, count = 0.0, 0
    for batch in batches:
        with torch.no_grad(), matrix_precision(config.precision):
            summed, targets = model.loss(batch)
        nats, count = nats + float(summed), count + targets
    return nats / math.log(2) / count


def matrix_precision(precision: str, device: str = "cpu") -> torch.autocast | nullcontext[None]:
    """Make a context in which matrix products run in `precision` ("float32" or "bfloat16") on that kind of device."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def count_targets(batch: Mapping[str, Tensor]) -> int:
    """Count the predictions that the loss of a batch sums over, as `model.loss` does, without a pass."""
    if "target_real" in batch:
        return int(batch["target_real"].sum())
    if "labels" in batch:
        return int((batch["labels"] != NOT_PREDICTED).sum())
    if "targets" in batch:
        return batch["targets"].numel()
    real_BT = batch.get("real")
    return int(batch["tokens"][:, 1:].numel() if real_BT is None else real_BT[:, 1:].sum())


@dataclass(frozen=True)
class _Pass:
    """One micro-batch.

    Attributes:
        decisions: what its routers choose, obeyed once it is known.
    """

    batch: Mapping[str, Tensor]
    decisions: list[Decision]
    config: TrainingConfig

    def loss(self, model: LanguageModel) -> tuple[Tensor, list[Routing]]:
        """Compute the sum over its targets, and the routings of its MoE layers."""
        options: dict[str, Any] = {"recompute": True} if self.config.recompute else {}
        if self.decisions:
            options["decisions"] = self.decisions
        routings: list[Routing] = []
        with matrix_precision(self.config.precision, next(model.parameters()).device.type):
            summed, _ = model.loss(self.batch, routings, **options)
        return summed, routings


def _cut(batch: Mapping[str, Tensor], rows: int) -> list[dict[str, Tensor]]:
    """Cut a batch into micro-batches of so many rows."""
    parts = {name: torch.split(tensor, rows) for name, tensor in batch.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def _sums_beforehand(model: LanguageModel, passes: Sequence[_Pass]) -> list[dict[str, Tensor]]:
    """Compute the sums of the whole batch per MoE layer, and fill the decisions.

    Noise drawn here is drawn again afterwards.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        return _over_ranks([[routing.sums for routing in one.loss(model)[1]] for one in passes])


def _auxiliary_loss(model: LanguageModel, own: Sequence[Sums], whole: Sequence[Sums]) -> Tensor:
    """Compute the routers' losses of the whole batch, with the gradient of this micro-batch's part in it."""
    loss = torch.zeros(())
    for layer, own_sums, whole_sums in zip(model.moe_layers, own, whole, strict=True):
        joined = dict(whole_sums)
        for name, value in own_sums.items():
            if value.requires_grad:
                joined[name] = whole_sums[name] - value.detach() + value
        for value in layer.router.losses(joined).values():
            loss = loss + value
    return loss


def _over_ranks(parts: Sequence[Sequence[Sums]]) -> list[dict[str, Tensor]]:
    """Add up the sums of the whole batch per MoE layer, from those of each micro-batch of this rank."""
    totals = [add_sums(of_layer) for of_layer in zip(*parts, strict=True)]
    _sum_over_ranks([value for of_layer in totals for value in of_layer.values()])
    return totals


def _sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks; where there is one process alone, that is the tensor."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in tensors:
            distributed.all_reduce(tensor)
