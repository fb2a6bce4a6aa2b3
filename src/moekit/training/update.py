"""What follows the gradients in a step: their norm, the step along what clipping leaves of them, and the average.

On a CPU in fp32 AdamW, the clipping and the average of the weights are one compiled pass over memory; anywhere else,
and with other optimisers, torch's operations do the same. The state is torch's either way.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from moekit.kernels.training.adamw_passes import AdamWParameter, adamw_step, norm_of
from moekit.kernels.training.compiled import takes
from moekit.training.average import WeightAverage


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Compute the norm of all gradients together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if all(takes(gradient, torch.float32) for gradient in gradients):
        return norm_of(gradients)
    return float(nn.utils.get_total_norm(gradients))


def update_weights(
    optimizer: torch.optim.Optimizer, *, rate: float, scale: float, average: WeightAverage | None = None
) -> None:
    """Take the optimiser's step along `scale` times the gradients, and move the average; gradients may become scaled.

    Args:
        optimizer: what takes the step.
        rate: its learning rate.
        scale: the factor that clipping leaves of the gradients.
        average: of the weights of the model whose parameters these are.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    averages = average.by_parameter if average else {}
    tensors = chain(stepped, (p.grad for p in stepped), averages.values())
    if not (_is_plain_adamw(optimizer) and all(takes(tensor, torch.float32) for tensor in tensors)):
        if scale != 1:
            torch._foreach_mul_([p.grad for p in stepped], scale)
        optimizer.step()
        if average:
            average.move()
        return
    kept = 1 - average.share if average else 1.0
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        adamw_step(
            list(_one_step_further(optimizer, group, averages)),
            beta1=beta1, beta2=beta2, eps=group["eps"], gradient_scale=scale, average_kept=kept,
        )  # fmt: skip
    if average:
        average.move(but_for=frozenset(stepped))


def _is_plain_adamw(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether that is AdamW without the variants that torch knows."""
    return type(optimizer) is torch.optim.AdamW and not any(
        group["amsgrad"] or group["maximize"] for group in optimizer.param_groups
    )


def _one_step_further(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], averages: Mapping[nn.Parameter, Tensor]
) -> Iterator[AdamWParameter]:
    """Give the parameters of a group that have gradients, their state as torch begins it, and count the step."""
    beta1, beta2 = group["betas"]
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        step = state["step"].item() + 1
        state["step"].fill_(step)
        yield AdamWParameter(
            weight=parameter,
            gradient=parameter.grad,
            first_moment=state["exp_avg"],
            second_moment=state["exp_avg_sq"],
            kept=1 - group["lr"] * group["weight_decay"],
            rate=group["lr"] / (1 - beta1**step),
            root_correction=math.sqrt(1 - beta2**step),
            average=averages.get(parameter),
        )
