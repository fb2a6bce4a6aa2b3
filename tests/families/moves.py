"""Weights moved by a family's layout between a model of ours and tensors of a folder, without any folder reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import check_cover, stored_shape


def randomize(model: nn.Module) -> None:
    """Every parameter of unit order, so that none is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4 if parameter.dim() == 1 else 0.7 / parameter.shape[-1] ** 0.5)
            if parameter.dim() == 1:
                parameter.add_(0.3)


def saved_tensors(model: Any, folder: Path) -> dict[str, Tensor]:
    """What transformers writes."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def to_ours(tensors: Mapping[str, Tensor], ours: nn.Module, layout: Sequence[Stored]) -> None:
    """Fill our model; every tensor has to have a place, every parameter is filled once."""
    parameters = dict(ours.named_parameters())
    check_cover(layout, parameters)
    assert tensors.keys() <= {entry.name for entry in layout}
    with torch.no_grad():
        for entry in layout:
            assert entry.name in tensors or entry.optional, entry.name
            if not entry.optional:
                assert tensors[entry.name].shape == stored_shape(entry, parameters), entry.name
                for part in entry.parts:
                    part.of_ours(parameters[part.ours]).copy_(part.of_stored(tensors[entry.name]))


def to_theirs(ours: nn.Module, layout: Sequence[Stored]) -> dict[str, Tensor]:
    """The tensors of a folder of our model."""
    parameters = dict(ours.named_parameters())
    tensors = {}
    with torch.no_grad():
        for entry in layout:
            if not entry.optional:
                tensor = torch.empty(stored_shape(entry, parameters))
                for part in entry.parts:
                    part.of_stored(tensor).copy_(part.of_ours(parameters[part.ours]))
                tensors[entry.name] = tensor
    return tensors
