"""Whether two configurations compute the same function, and where they differ."""

from collections.abc import Iterator
from typing import Any

from moekit.config.config_base import Config

TRAINING_ONLY = frozenset(
    {"init_std", "init_factor", "jitter", "z_loss", "balance_loss", "importance_loss", "load_loss", "bias_step"}
)
"""The fields that only training looks at: configurations that differ in nothing else are the same function."""


def same_function(a: Config, b: Config) -> bool:
    """Tell whether both configurations compute the same, whatever they say of training."""
    return not differences(a, b)


def differences(a: Config, b: Config) -> list[str]:
    """Give the paths of the fields (`layers[0].attention.scale`) by which two configurations compute different things.

    Fields of `TRAINING_ONLY` do not count; numbers count where they differ by more than rounding.
    """
    return list(_differences(a.model_dump(mode="json"), b.model_dump(mode="json"), ""))


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted((a.keys() | b.keys()) - TRAINING_ONLY):
            inner = f"{path}.{key}" if path else key
            if key in a and key in b:
                yield from _differences(a[key], b[key], inner)
            else:
                yield inner
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, pair in enumerate(zip(a, b, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif isinstance(a, float) and isinstance(b, float):
        if abs(a - b) > 1e-9 * max(abs(a), abs(b)):  # a factor that was written as another one's square
            yield path
    elif a != b:
        yield path
