"""Hugging Face folders: models read from them and written to them."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from moekit.checkpoint.layout import Stored, stored
from moekit.checkpoint.stored_names import names_in_layout
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.write_weights import write_folder as write_whole
from moekit.checkpoint.write_weights import write_weights
from moekit.config import Config
from moekit.config.comparing import same_function
from moekit.core.errors import MoekitError
from moekit.core.validation import problem_of
from moekit.families import Family, Settings, describe, family_of
from moekit.models.companions import copy_companions
from moekit.models.special_tokens import with_special_tokens

CONFIG = "config.json"
_MAX_CONFIG_BYTES = 16_000_000


def read_settings(folder: Path) -> Settings:
    """Read the folder's config.json; raise MoekitError where there is none, or it is not an object of JSON."""
    file = folder / CONFIG
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise MoekitError(f"{file} is larger than a config.json can be.")
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MoekitError(f"Cannot read {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise MoekitError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise MoekitError(f"{file} must hold an object of settings.")
    return Settings(values, file)


def read_config(folder: Path) -> tuple[Family, Config]:
    """Read the family and the configuration that a folder names; its weights are not looked at."""
    settings = read_settings(folder)
    family = family_of(settings)
    try:
        return family, with_special_tokens(family.read(settings), folder)
    except ValidationError as error:  # the settings contradict each other or lie out of bounds
        raise MoekitError(f"{settings.file}: {problem_of(error)}") from error
    except ValueError as error:
        raise MoekitError(f"{settings.file}: {error}.") from error


def write_model(model: nn.Module, config: Config, target: Path, origin: Path | None) -> None:
    """Write a folder: config.json, safetensors, and what stood beside the weights in the folder `origin`.

    The folder is of the family that it came from, if that can still say the configuration, and names tensors as it did.
    What is not complete never stands under its name.

    Raises:
        UsageError: where `target` holds something.
        MoekitError: where the disk is full.
    """
    text = config_text(model, config, origin)
    family = family_of(Settings(json.loads(text), target / CONFIG))
    layout = layout_of(family, config, model, _names_in(origin))

    def fill(folder: Path) -> None:
        (folder / CONFIG).write_text(text, encoding="utf-8")
        write_weights(folder, layout, own_tensors(model))
        if origin is not None:
            copy_companions(origin, folder)

    write_whole(target, fill)


def config_text(model: nn.Module, config: Config, origin: Path | None) -> str:
    """Make config.json: the origin's as far as it says the same model, else what the configuration alone says."""
    kept: dict[str, Any] = {}
    preferred = None
    if origin is not None and (origin / CONFIG).is_file():
        kept = read_settings(origin).values
        preferred = str(kept.get("model_type"))
        kept.pop("torch_dtype", None)  # the name of `dtype` before transformers 5
        if same_function(read_config(origin)[1], config):
            return _json(kept | _types(model))
    _, settings = describe(config, preferred)
    if settings["model_type"] != preferred:
        kept = {key: value for key, value in kept.items() if key.endswith("_token_id")}
    return _json(kept | settings | _types(model))


def layout_of(family: Family, config: Config, model: nn.Module, names: Collection[str] = ()) -> list[Stored]:
    """List the stored tensors of that model in that family's folders.

    Args:
        family: the family of the folder.
        config: the model's configuration.
        model: the module, which may be on the meta device.
        names: the tensors in a folder, where there is one; of several layouts the one that has most of them is taken.
    """
    if family.layout is None:
        return [stored(name, name) for name in own_tensors(model)]
    layouts = [list(layout(config)) for layout in (family.layout, *family.other_layouts)]
    return max(layouts, key=lambda layout: _held(layout, names, family)) if names else layouts[0]


def _held(layout: list[Stored], names: Collection[str], family: Family) -> int:
    """Count the tensors of a layout that a folder holds, in whatever spelling."""
    known = {entry.name for entry in layout}
    spelled = names_in_layout(map(family.renamed, names), known)
    return len(known.intersection(spelled.values()))


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name parameters and persistent buffers; one that has two names (tied embeddings) has its first."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        named.setdefault(id(tensor), (name, tensor.detach()))
    return dict(named.values())


def allocate(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Replace every tensor on the meta device by an uninitialised one; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for prefix, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    dtype = dtypes.get(f"{prefix}.{name}" if prefix else name, tensor.dtype)
                    empty = torch.empty(tensor.shape, dtype=dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, empty.is_floating_point()) if is_parameter else empty
                kind[name] = made[id(tensor)]


def _names_in(folder: Path | None) -> Collection[str]:
    """Name the tensors in a folder.

    There are none where it has no weights that can be read (it may be there for its tokenizer).
    """
    if folder is None:
        return ()
    try:
        return StoredTensors.open(folder)
    except MoekitError:
        return ()


def _types(model: nn.Module) -> dict[str, str]:
    """Say the number type that most weights have, as transformers reads it."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return {"dtype": str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")} if sizes else {}


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
