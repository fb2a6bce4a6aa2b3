"""Weights copied through a family's layout between a model of ours and the tensors of a folder, without our reading."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import check_cover, stored_shape
from moekit.families.settings import Settings


def randomize(model: nn.Module) -> None:
    """Draw every parameter anew, of unit order, so that none is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4 if parameter.dim() == 1 else 0.7 / parameter.shape[-1] ** 0.5)
            if parameter.dim() == 1:
                parameter.add_(0.3)


def saved_tensors(theirs: Any, folder: Path) -> dict[str, Tensor]:
    """Save transformers' model in the folder, and give the tensors that it wrote."""
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def saved_anew(theirs: Any, folder: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Draw every weight of transformers' model anew, save it in the folder, and give its settings and tensors.

    No weight is 0 or 1. They are small: scores without a scale would otherwise be so large that rounding decides what
    attention looks at.
    """
    with torch.no_grad():
        for parameter in theirs.parameters():
            center = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(center + torch.randn_like(parameter) * 0.1)
    tensors = saved_tensors(theirs.eval(), folder)
    config = folder / "config.json"
    return Settings(json.loads(config.read_text()), config), tensors


def copy_in(tensors: Mapping[str, Tensor], model: nn.Module, layout: Sequence[Stored]) -> None:
    """Copy a folder's tensors into our model: each has its place, and every element of ours is written exactly once."""
    parameters = dict(model.named_parameters())
    check_cover(layout, parameters)
    assert tensors.keys() <= {entry.name for entry in layout}
    written = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with torch.no_grad():
        for entry in layout:
            if entry.optional:
                continue
            assert tensors[entry.name].shape == stored_shape(entry, parameters), entry.name
            for part in entry.parts:
                part.of_ours(parameters[part.ours]).copy_(part.of_stored(tensors[entry.name]))
                part.of_ours(written[part.ours]).add_(1)
    for name, times in written.items():
        assert (times == 1).all(), name


def copy_out(model: nn.Module, layout: Sequence[Stored]) -> dict[str, Tensor]:
    """Give the tensors of a folder of our model, the optional ones left out."""
    parameters = dict(model.named_parameters())
    tensors = {}
    with torch.no_grad():
        for entry in layout:
            if not entry.optional:
                tensor = torch.empty(stored_shape(entry, parameters))
                for part in entry.parts:
                    part.of_stored(tensor).copy_(part.of_ours(parameters[part.ours]))
                tensors[entry.name] = tensor
    return tensors


def check_same_bits(tensors: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    """Assert that both hold the same tensors, bit for bit."""
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, again[name]), name
