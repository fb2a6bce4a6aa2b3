"""Hugging Face folders: models read from them and written to them."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from moekit.checkpoint.layout import Stored, stored
from moekit.checkpoint.quantized_forms import dequantized
from moekit.checkpoint.same_values import same_values
from moekit.checkpoint.stored_names import names_in_layout
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.write_weights import write_folder as write_whole
from moekit.checkpoint.write_weights import write_weights
from moekit.config import Config, ModelConfig
from moekit.config.comparing import same_function
from moekit.core.errors import MoekitError
from moekit.core.validation import problem_of
from moekit.families import Family, Settings, describe, family_of
from moekit.models.companions import copy_companions
from moekit.models.special_tokens import with_special_tokens

CONFIG = "config.json"
_MAX_CONFIG_BYTES = 16_000_000

# What tensors are the same with and without.
_NO_SIZE = re.compile(r"^rope|^original|window|types?$|token|act|func|^scale|_len$")

# Of a model that is saved as it was read: written for both versions of transformers, and as the tensors are.
_WRITTEN_ANEW = ("rope_parameters", "rope_theta", "rope_scaling", "tie_word_embeddings", "num_nextn_predict_layers")
# Of a model that was changed: what a family need not say, and transformers would believe over what it does.
_NOT_KEPT = ("original_max_position_embeddings", "layer_types")


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
    """Read the family and the configuration of a folder: what config.json says, and what its tensors say otherwise.

    Weights are read only where config.json says that one tensor is another's copy and the folder holds both.

    Raises:
        MoekitError: where config.json is not read, or a copy differs that the family cannot have apart.
    """
    settings = read_settings(folder)
    family = family_of(settings)
    with naming_missing_keys(family, settings):
        config = with_special_tokens(family.config(settings), folder)
    return family, _with_own_head(family, config, folder)


def _with_own_head(family: Family, config: Config, folder: Path) -> Config:
    """Untie the head where the folder holds one that differs from the embedding, whatever config.json says."""
    if family.layout is None or (isinstance(config, ModelConfig) and not config.tie_embeddings):
        return config
    layout = family.layout(config)
    try:
        stored = dequantized(StoredTensors.open(folder), read_settings(folder).values)
    except MoekitError:  # told where weights are needed
        return config
    tensors = named_as_layout(stored, layout, family)
    for copy in [entry for entry in layout if entry.optional and entry.name in tensors]:
        original = next(entry.name for entry in layout if entry.parts == copy.parts and not entry.optional)
        if original not in tensors or same_values(tensors, copy.name, original):
            continue
        untied = config.model_copy(update={"tie_embeddings": False})
        if not any(entry.name == copy.name and not entry.optional for entry in family.layout(untied)):
            raise MoekitError(
                f"{tensors[copy.name].file} holds {copy.name!r} and another {original!r}, which are one in this model."
            )
        config = untied
    return config


def named_as_layout(stored: StoredTensors, layout: Sequence[Stored], family: Family) -> StoredTensors:
    """Name the tensors of a folder as the layout does; those that it lacks keep their names.

    Raises:
        MoekitError: where two of them are one tensor.
    """
    renamed = {name: family.renamed(name) for name in stored}
    spelled = names_in_layout(renamed.values(), {entry.name for entry in layout})
    found: dict[str, str] = {}
    for name in stored:
        new = spelled[renamed[name]]
        if new in found:
            raise MoekitError(f"{stored[name].file} holds {found[new]!r} and {name!r}, which are one tensor.")
        found[new] = name
    return StoredTensors({new: stored[name] for new, name in found.items()}, stored.passed_over)


@contextmanager
def naming_missing_keys(family: Family, settings: Settings) -> Iterator[None]:
    """Add to an error about sizes, numbers or tensors which keys for them config.json lacks."""
    try:
        yield
    except (MoekitError, ValueError) as error:
        given = settings.values.keys() | {family.aliases.get(key) for key in settings.values}
        missing = [key for key, default in family.defaults.items() if key not in given and _is_size(key, default)]
        text = str(error) if isinstance(error, MoekitError) else f"{settings.file}: {_problem(error)}"
        more = (
            f" {CONFIG} lacks {', '.join(missing)}; the defaults of {family.model_type} were taken." if missing else ""
        )
        raise MoekitError(text + more) from error


def _problem(error: ValueError) -> str:
    """Say why settings contradict each other or lie out of bounds."""
    return problem_of(error) if isinstance(error, ValidationError) else f"{error}."


def _is_size(key: str, default: Any) -> bool:
    """Tell whether a key says how many or how large, or whether there are any."""
    return not isinstance(default, float) and not _NO_SIZE.search(key)


def write_model(model: nn.Module, config: Config, target: Path, origin: Path | None) -> None:
    """Write a folder: config.json, safetensors, and what stood beside the weights in the folder `origin`.

    The folder is of the family that it came from, if that can still say the configuration, and names tensors as it did.
    Versions 4.57 and 5 of transformers read it.
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
    family, settings = describe(config, preferred)
    if origin is not None and kept and same_function(read_config(origin)[1], config):
        if (
            family.model_type == preferred
        ):  # with what one version of transformers calls otherwise, or takes for granted
            kept = settings | kept | {key: settings[key] for key in _WRITTEN_ANEW if key in settings}
        return _json(kept | _types(model))
    if family.model_type == preferred:
        kept = {key: value for key, value in kept.items() if key not in family.aliases and key not in _NOT_KEPT}
    else:
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
    """Say the number type that most weights have."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return type_settings(max(sizes, key=lambda dtype: sizes[dtype])) if sizes else {}


def type_settings(dtype: torch.dtype) -> dict[str, str]:
    """Say the number type of weights under the name that transformers 5 reads and under that of 4."""
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "torch_dtype": name}


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
