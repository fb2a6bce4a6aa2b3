"""Parameters and bytes of a model, from its configuration alone."""

from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import nn

from moekit.config import Config, ModelConfig
from moekit.counting import ParameterCount, cached_values_per_token, count_parameters
from moekit.families import preset, presets
from moekit.kernels.packed import Q4_0, Q4_K, Q6_K, Q8_0
from moekit.models import build, config_of, find
from moekit.models.folder import CONFIG
from moekit.models.load_model import names_a_place
from moekit.moe import MoELayer
from moekit.nn.meta import on_meta

# Blocks of the quantised types include their scales. Norms and other vectors stay wider in such a file, which is less
# than a thousandth of a model.
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0} | {
    block_type.name: block_type.bits / 8 for block_type in (Q8_0, Q6_K, Q4_K, Q4_0)
}


class ModelPlan(BaseModel):
    """What a model needs.

    Attributes:
        params_active: the parameters that take part in one token's forward pass, embedding tables included.
        weight_bytes: the bytes of all weights, by type of number.
        kv_cache_bytes_per_token: the bytes of all layers' cache in bfloat16, None where there is no such cache; a
            window bounds the tokens that are kept, not this.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    source: str | None
    params_total: int
    params_active: int
    active_share: float
    params_by_part: dict[str, int]
    weight_bytes: dict[str, int]
    kv_cache_bytes_per_token: int | None


def plan(model: str | Path | Config) -> ModelPlan:
    """Tell what a model needs before anything is downloaded: parameters, bytes by type, key-value cache.

    Args:
        model: the name of a preset (`moekit.families.presets()` has them), a folder with a config.json or a GGUF file,
            whose weights are not looked at, a hub id (owner/name), whose config.json alone is downloaded, or a
            configuration.

    Returns:
        Parameters in all, those that are active for a token, and those of each part; bytes of the weights in each type
        of number; bytes of the key-value cache for a token.

    Raises:
        UsageError: where there is no such preset, folder or file.
        MoekitError: where a config.json or a GGUF file cannot be read, or nothing be downloaded.

    Examples:
        >>> import moekit
        >>> plan = moekit.plan("mixtral-8x7b")
        >>> plan.params_total, plan.params_active
        (46702792704, 12879925248)
        >>> plan.weight_bytes["q4_k"] / 1e9  # GB
    """
    if isinstance(model, Config):
        return plan_model(type(model).__name__, model)
    name, path = str(model), Path(model)
    if name in presets() and not (path / CONFIG).is_file():
        return plan_model(name, preset(name).config, preset(name).source)
    if not path.exists() and not names_a_place(name):
        preset(name)  # raises, and says which preset may be meant
    found = find(model, only_config=True)
    return plan_model(name, config_of(found), str(found / CONFIG if found.is_dir() else found))


def plan_model(name: str, config: Config, source: str | None = None) -> ModelPlan:
    """Tell what a model needs from its configuration; `source` says where the configuration was found."""
    count = count_parameters(config) if isinstance(config, ModelConfig) else count_by_building(config)
    cache = 2 * cached_values_per_token(config) if isinstance(config, ModelConfig) else None
    return ModelPlan(
        model=name,
        source=source,
        params_total=count.total,
        params_active=count.active,
        active_share=count.active / count.total,
        params_by_part={part: size for part, size in count.by_part.items() if size},
        weight_bytes={kind: round(count.total * size) for kind, size in BYTES_PER_WEIGHT.items()},
        kv_cache_bytes_per_token=cache,
    )


def count_by_building(config: Config) -> ParameterCount:
    """Count the parameters of a model of any kind, which is built without memory for its weights and looked at."""
    with on_meta():
        model = build(config)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[part_of(name)] += parameter.numel()
    idle = sum(_idle(module) for module in model.modules() if isinstance(module, MoELayer))
    total = sum(parts.values())
    return ParameterCount(total=total, active=total - idle, by_part=dict(parts))


def part_of(name: str) -> str:
    """Find the part of a model that a parameter belongs to, by the modules on the way to it."""
    modules = name.split(".")
    for part in ("experts", "router", "branch"):
        if part in modules:
            return part
    for module in reversed(modules):
        for part in ("norm", "attention", "feed_forward", "embedding", "head"):
            if part in module:
                return part
    return modules[0]


def _idle(layer: MoELayer) -> int:
    experts: nn.Module = layer.experts
    chosen = layer.config.router.experts_per_token
    size = sum(parameter.numel() for parameter in experts.parameters())
    return size // layer.config.experts * (layer.config.experts - chosen)
