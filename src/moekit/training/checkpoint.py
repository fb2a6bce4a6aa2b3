"""The state of a training run in one safetensors file: weights, optimiser, random numbers, and what was measured.

One file, so that it is either the old state or the new one, whole, whatever happens while it is written.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from moekit.checkpoint.alignment import aligned
from moekit.core import files
from moekit.core.errors import MoekitError

# What AdamW keeps for each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_state(
    path: Path, model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write the state to `path`, replacing what is there only once the new file is safely on disk.

    Raises:
        MoekitError: where the disk is full.
    """
    tensors = {"random": torch.get_rng_state(), **_weights(model, average)}
    for name, parameter in model.named_parameters():
        for moment, tensor in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{moment}"] = tensor
    with files.replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
        except SafetensorError as error:
            if "No space left" in str(error) or "os error 28" in str(error):
                raise OSError(28, "No space left on device") from error
            raise


def load_state(
    path: Path, model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put what `save_state` wrote back into model, average, optimizer and torch's random numbers; give the progress.

    Raises:
        MoekitError: naming the file where it is damaged or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            progress: dict[str, Any] = json.loads(stored.metadata()["progress"])
        _restore(tensors, model, average, optimizer)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MoekitError(f"The checkpoint {path} is damaged or of another model ({error}); delete it.") from error
    return progress


def _restore(
    tensors: dict[str, Tensor], model: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> None:
    torch.set_rng_state(tensors.pop("random"))
    for name, tensor in _weights(model, average).items():
        tensor.copy_(tensors.pop(name))
    for name, parameter in model.named_parameters():
        if f"optimizer.{name}.step" not in tensors:
            continue  # no batch so far gave it a gradient
        moments = {moment: tensors.pop(f"optimizer.{name}.{moment}") for moment in _MOMENTS}
        optimizer.state[parameter] = {moment: aligned(tensor) for moment, tensor in moments.items()}
    if tensors:
        raise ValueError(f"unexpected tensors {', '.join(sorted(tensors))}")


def _weights(model: nn.Module, average: AveragedModel) -> dict[str, Tensor]:
    """Name the parameters and buffers of both, not copied; one with two names (tied embeddings) has its first."""
    named: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in (("model", model), ("average", average)):
        for name, tensor in module.state_dict(keep_vars=True).items():
            named.setdefault(id(tensor), (f"{prefix}.{name}", tensor.detach()))
    return dict(named.values())
