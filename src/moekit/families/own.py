"""moekit's own folders: any decoder, its configuration as it is, its tensors under our names.

They hold what no other format can say: other routers, capacities, residual branches, layers that differ freely.
config.json has `model_type: moekit_decoder` and the configuration under `moekit`.
"""

from typing import Any

from moekit.config import ModelConfig
from moekit.families.base import Family
from moekit.families.settings import Settings
from moekit.validation import validate


def read(settings: Settings) -> ModelConfig:
    """The configuration under `moekit`."""
    inner = settings.inner("moekit")
    if inner is None:
        raise settings.problem("moekit", "is missing")
    return validate(ModelConfig, inner.values, where=f"{settings.file}, moekit")


def write(config: ModelConfig) -> dict[str, Any]:
    """The configuration, whole."""
    return {"moekit": config.model_dump(mode="json")}


FAMILY = Family(model_type="moekit_decoder", architecture="Decoder", read=read, write=write, layout=None)
