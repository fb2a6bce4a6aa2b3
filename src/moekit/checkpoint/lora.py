"""LoRA adapters as peft saves them: W + scale · B A, one tensor at a time (Hu et al., arXiv 2106.09685)."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moekit.checkpoint.alignment import aligned
from moekit.checkpoint.read_weights import memory_of
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.core.errors import MoekitError, UsageError

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")


@dataclass(frozen=True)
class Factors:
    """What changes one matrix: `scale` · B A, B (out, rank) and A (rank, in) stored under these names.

    transposed: the matrix is stored (in, out).
    """

    a: str
    b: str
    scale: float
    shape: tuple[int, int]
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter: the changes by the name of the stored tensor that they are for, and tensors that replace others."""

    folder: Path
    changes: Mapping[str, Factors]
    replaced: Mapping[str, tuple[str, tuple[int, ...]]]

    def touches(self, name: str) -> bool:
        """Tell whether the tensor of that name is another one with the adapter."""
        return name in self.changes or name in self.replaced

    def applied(self, name: str, weight: Tensor) -> Tensor:
        """Give the tensor of that name with the adapter, in the type of `weight`; the sum is in fp32."""
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            if name in self.replaced:
                other: Tensor = file.get_tensor(self.replaced[name][0])
                return other.to(weight.dtype)
            factors = self.changes[name]
            b, a = (aligned(file.get_tensor(factor).float()) for factor in (factors.b, factors.a))
            change: Tensor = b @ a
        changed = (change.t() if factors.transposed else change) * factors.scale
        return (changed + weight.float()).to(weight.dtype)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise MoekitError naming the tensor where the adapter is for a model of other shapes."""
        wanted = {name: factors.shape for name, factors in self.changes.items()}
        for name, shape in {**wanted, **{name: held[1] for name, held in self.replaced.items()}}.items():
            if name not in shapes:
                raise MoekitError(f"{self.folder / WEIGHTS} changes {name!r}, which the model has not.")
            if shapes[name] != shape:
                raise MoekitError(
                    f"{self.folder / WEIGHTS} has the shape {list(shape)} for {name!r}, the model {list(shapes[name])}."
                )


class AdaptedTensors(StoredTensors):
    """The tensors of a folder with an adapter on top: what it touches is computed when it is read, and read again.

    Raises MoekitError where the adapter is for a model of other shapes.
    """

    def __init__(self, tensors: StoredTensors, adapter: Adapter) -> None:
        super().__init__(tensors)
        adapter.check({name: info.shape for name, info in tensors.items()})
        self.adapter = adapter
        self._held: tuple[str, Tensor] | None = None

    def read(self, name: str, begin: int, into: memoryview) -> None:
        """Fill `into` as `StoredTensors.read` does; one tensor that was computed is kept until another is."""
        if not self.adapter.touches(name):
            super().read(name, begin, into)
            return
        if self._held is None or self._held[0] != name:
            weight = torch.empty(self[name].shape, dtype=self[name].dtype)
            super().read(name, 0, memory_of(weight))
            self._held = name, self.adapter.applied(name, weight).contiguous()
        into[:] = memory_of(self._held[1])[begin : begin + len(into)]


def open_adapter(folder: Path) -> Adapter:
    """Open the adapter in a local folder; of its weights only the header is read.

    Raises UsageError where a file is missing, MoekitError where one is damaged, or asks for what is not W + B A.
    """
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} is no LoRA adapter: it has no {name}.")
    settings = _settings(folder / SETTINGS)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise MoekitError(f"{folder / WEIGHTS} is damaged or incomplete ({error}); download it again.") from error
    return _adapter(folder, settings, shapes)


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MoekitError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("r"), int) or settings["r"] < 1:
        raise MoekitError(f"{file}: r must be the adapter's rank.")
    if settings.get("peft_type", "LORA") != "LORA":
        raise MoekitError(f"{file}: peft_type is {settings['peft_type']!r}, and moekit has LORA alone.")
    for key in ("use_dora", "lora_bias", "use_bdlora", "use_qalora", "arrow_config"):
        if settings.get(key):
            raise MoekitError(f"{file}: {key} is set, which moekit has not.")
    if settings.get("bias", "none") != "none":
        raise MoekitError(f"{file}: bias is {settings['bias']!r}, and moekit has 'none' alone.")
    return settings


def _adapter(folder: Path, settings: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    replaced: dict[str, tuple[str, tuple[int, ...]]] = {}
    factors: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"], {})[match["factor"]] = name
        elif "lora_" in name or not name.startswith(_PREFIX):
            raise MoekitError(f"{folder / WEIGHTS} holds {name!r}, which is no part of a LoRA that moekit knows.")
        else:
            replaced[name.removeprefix(_PREFIX).replace(".modules_to_save", "")] = name, shape
    changes = {}
    for module, names in factors.items():
        if set(names) != {"A", "B"}:
            raise MoekitError(f"{folder / WEIGHTS} holds one of the two factors of {module!r} alone.")
        changes[f"{module}.weight"] = _factors(settings, module, names, shapes, folder)
    if not changes and not replaced:
        raise MoekitError(f"{folder / WEIGHTS} changes nothing.")
    return Adapter(folder=folder, changes=changes, replaced=replaced)


def _factors(
    settings: dict[str, Any],
    module: str,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> Factors:
    a, b = shapes[names["A"]], shapes[names["B"]]
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise MoekitError(f"{folder / WEIGHTS}: {module!r} has factors of {list(b)} and {list(a)}, which do not match.")
    rank = _of_pattern(settings.get("rank_pattern"), module, settings["r"])
    alpha = _of_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", settings["r"]))
    if a[0] != rank:
        raise MoekitError(f"{folder / WEIGHTS}: {module!r} is of rank {a[0]}, and {SETTINGS} says {rank}.")
    scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    transposed = bool(settings.get("fan_in_fan_out"))
    shape = (a[1], b[0]) if transposed else (b[0], a[1])
    return Factors(a=names["A"], b=names["B"], scale=scale, shape=shape, transposed=transposed)


def _of_pattern(pattern: object, module: str, default: Any) -> Any:
    """Give the value of the first key that, as a regular expression, is the end of a module's name at a dot."""
    for key, value in (pattern if isinstance(pattern, dict) else {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


__all__ = ["SETTINGS", "WEIGHTS", "AdaptedTensors", "Adapter", "Factors", "open_adapter"]
