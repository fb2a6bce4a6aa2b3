"""Families of our own: the configuration stands whole under `moekit` in config.json, tensors under our names.

They hold what no other format can say: experts, layers that differ freely, other activations.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from moekit.config import Config
from moekit.core.validation import validate
from moekit.families.family import Family, Preset
from moekit.families.settings import Settings

C = TypeVar("C", bound=Config)


def whole_family(
    config_class: type[C], model_type: str, architecture: str, presets: Mapping[str, Preset] | None = None
) -> Family:
    """Make the family of every model that such a configuration describes."""

    def read(settings: Settings) -> C:
        inner = settings.inner("moekit")
        if inner is None:
            raise settings.problem("moekit", "is missing")
        return validate(config_class, inner.values, where=f"{settings.file}, moekit")

    def write(config: C) -> dict[str, Any]:
        return {"moekit": config.model_dump(mode="json")}

    return Family(
        model_type=model_type, architecture=architecture, read=read, write=write, layout=None, presets=presets or {}
    )
