"""Weights moved by a family's layout, between what transformers holds and a model of ours, without folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from moekit.checkpoint.layout import Stored
from moekit.families.settings import Settings


def as_saved(theirs: Any, folder: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Settings and tensors of what `save_pretrained` writes, every weight drawn anew, so that none is 0 or 1.

    Small ones: scores without a scale would otherwise be so large that rounding decides what attention looks at.
    """
    with torch.no_grad():
        for parameter in theirs.parameters():
            center = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(center + torch.randn_like(parameter) * 0.1)
    theirs.eval().save_pretrained(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    config = folder / "config.json"
    return Settings(json.loads(config.read_text()), config), tensors


def fill(model: nn.Module, layout: Sequence[Stored], tensors: Mapping[str, Tensor]) -> None:
    """Their tensors into our parameters. Every tensor has its place, every element of ours is written exactly once."""
    assert {entry.name for entry in layout} >= tensors.keys()
    assert {entry.name for entry in layout if not entry.optional} <= tensors.keys()
    parameters = dict(model.named_parameters())
    written = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with torch.no_grad():
        for entry in layout:
            for part in entry.parts if entry.name in tensors and not entry.optional else ():
                part.of_ours(parameters[part.ours]).copy_(part.of_stored(tensors[entry.name]))
                part.of_ours(written[part.ours]).add_(1)
    for name, times in written.items():
        assert (times == 1).all(), name


def taken(model: nn.Module, layout: Sequence[Stored]) -> dict[str, Tensor]:
    """Our parameters under their names."""
    parameters = dict(model.named_parameters())
    return {
        entry.name: entry.parts[0].of_ours(parameters[entry.parts[0].ours]).detach().clone()
        for entry in layout
        if not entry.optional
    }


def check_same_bits(tensors: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, again[name]), name
