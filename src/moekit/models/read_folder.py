"""A model as it lies in a folder, in whatever guise: every reader of weights opens it here.

Guises are names with a prefix more or less, experts packed into one tensor, the head alone of a tied pair, tensors that
the index does not name, weights quantised in a form that is unpacked. What cannot be read is refused in a sentence.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.quantized_forms import dequantized, quantized_form
from moekit.checkpoint.read_weights import check_weights, dtype_of, read_weights
from moekit.checkpoint.stored_tensors import StoredTensors, UnknownForm
from moekit.config import Config
from moekit.core.errors import MoekitError
from moekit.families import Family, Settings
from moekit.families.tensors_left_out import is_buffer, left_out
from moekit.models.folder import (
    allocate,
    layout_of,
    named_as_layout,
    naming_missing_keys,
    own_tensors,
    read_config,
    read_settings,
)
from moekit.nn.meta import on_meta

_logger = logging.getLogger(__name__)
# What modules compute in; of other types weights are turned into one of these.
_COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _COMPUTED}


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A model in a folder whose tensors fit its configuration; no weight is read.

    Attributes:
        family: the family of the folder.
        config: the model's configuration.
        settings: its config.json.
        model: the module, on the meta device.
        layout: the stored tensors that the model is made of, by the names that they have in `tensors`.
        tensors: the stored tensors, those alone that the layout names.
    """

    family: Family
    config: Config
    settings: Settings
    model: nn.Module
    layout: list[Stored]
    tensors: StoredTensors


def open_checkpoint(folder: Path, build: Callable[[Config], nn.Module]) -> StoredCheckpoint:
    """Open the model in a folder and check that its tensors fit its configuration.

    Args:
        folder: the Hugging Face folder.
        build: gives the module of a configuration; called on the meta device.

    Raises:
        UsageError: where the folder holds no weights.
        MoekitError: naming file and tensor where they do not fit, or saying in which form the folder is quantised.
    """
    settings = read_settings(folder)
    family, config = read_config(folder)
    try:
        stored = dequantized(StoredTensors.open(folder), settings.values)
    except UnknownForm:
        _check_not_quantized(folder, settings, ())
        raise
    with on_meta():
        model = build(config)
    layout = layout_of(family, config, model, stored)
    tensors = _without_leftovers(folder, family, config, layout, named_as_layout(stored, layout, family))
    layout = _with_copies(layout, tensors)
    try:
        with naming_missing_keys(family, settings):
            check_weights(own_tensors(model), layout, tensors)
    except MoekitError:
        _check_not_quantized(folder, settings, stored)
        raise
    if any(info.dtype.itemsize == 1 and info.dtype.is_floating_point for info in tensors.values()):
        # Without scales they are numbers only where nothing speaks of scales.
        _check_not_quantized(folder, settings, ())
    _say_what_is_left_out(folder, stored)
    return StoredCheckpoint(
        family=family, config=config, settings=settings, model=model, layout=layout, tensors=tensors
    )


def read_model(
    folder: Path,
    build: Callable[[Config], nn.Module],
    dtype: torch.dtype | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Read the model in the folder, in evaluation mode.

    Args:
        folder: the Hugging Face folder.
        build: gives the module of a configuration; called on the meta device, so that no weight is drawn only to be
            overwritten.
        dtype: the type of the weights; None leaves them as they are stored, if all are of one type.
        on_bytes: called with the bytes read so far and those there are.
    """
    # Checked on the meta device: a file that lies about sizes must not make us allocate them.
    stored = open_checkpoint(folder, build)
    model, layout, tensors = stored.model, stored.layout, stored.tensors
    allocate(model, _loaded_types(model, dtype_of(layout, tensors), stored.settings, dtype))
    read_weights(own_tensors(model), layout, tensors, on_bytes=counted(on_bytes, layout, tensors))
    return model.eval()


def _without_leftovers(
    folder: Path, family: Family, config: Config, layout: list[Stored], tensors: StoredTensors
) -> StoredTensors:
    """Leave out buffers, and what is no part of the model, which is said."""
    known = {entry.name for entry in layout}
    unknown = [name for name in tensors if name not in known]
    left = left_out(family, config, unknown)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        _logger.warning("Note: %r%s in %s are left out, being no part of the model.", left[0], more, folder)
    gone = {*left, *filter(is_buffer, unknown)}
    return StoredTensors({name: info for name, info in tensors.items() if name not in gone}, tensors.passed_over)


def _with_copies(layout: list[Stored], tensors: StoredTensors) -> list[Stored]:
    """Take the copy of a tied tensor where the folder holds the copy alone."""
    copies = {entry.parts: entry.name for entry in layout if entry.optional and entry.name in tensors}
    swapped = {
        name
        for entry in layout
        if not entry.optional and entry.name not in tensors and entry.parts in copies
        for name in (entry.name, copies[entry.parts])
    }
    return [replace(entry, optional=not entry.optional) if entry.name in swapped else entry for entry in layout]


def _check_not_quantized(folder: Path, settings: Settings, names: Iterable[str]) -> None:
    """Raise MoekitError where the tensors' names, or config.json, say that the folder is quantised."""
    form = quantized_form(settings.values, names)
    if form is not None:
        raise MoekitError(
            f"{folder} is quantised ({form}), in a form that moekit does not read; "
            "take the model that it was made from, or a GGUF file of it."
        )


def _say_what_is_left_out(folder: Path, stored: StoredTensors) -> None:
    if stored.passed_over:
        count, first = len(stored.passed_over), stored.passed_over[0]
        _logger.warning("Note: %d tensors in %s that its index does not name are left out (%r).", count, folder, first)


def _loaded_types(
    model: nn.Module, stored: Mapping[str, torch.dtype], settings: Settings, dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Choose the type of each tensor of the model.

    Weights of several types become one, in which the model computes: config.json's, else the one that most have, as
    transformers does. Buffers keep their type: a router's balancing bias is finer than its weights.
    """
    weights = {name for name, _ in model.named_parameters()}
    sizes: dict[torch.dtype, int] = {}
    for name, tensor in own_tensors(model).items():
        if name in weights:
            sizes[stored[name]] = sizes.get(stored[name], 0) + tensor.numel()
    if dtype is None and len(sizes) == 1 and sizes.keys() <= set(_COMPUTED):
        return dict(stored)
    wanted = dtype or _DTYPES.get(str(settings.values.get("dtype") or settings.values.get("torch_dtype")))
    wanted = wanted or max(_COMPUTED, key=lambda kind: sizes.get(kind, 0))
    turned = weights if dtype is None else {name for name, kind in stored.items() if kind.is_floating_point}
    return {name: wanted if name in turned else kind for name, kind in stored.items()}


def counted(
    on_bytes: Callable[[int, int], None] | None, layout: list[Stored], tensors: StoredTensors
) -> Callable[[int], None] | None:
    """Make what counts bytes together and tells how many of all of them there are by then."""
    if on_bytes is None:
        return None
    total = sum(tensors[entry.name].size for entry in layout if entry.name in tensors and not entry.optional)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, total)

    return count
