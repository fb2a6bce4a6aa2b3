"""Whether two configurations compute the same function, and where they differ."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from moekit.config.config_base import Config

TRAINING_ONLY = frozenset(
    {"init_std", "init_factor", "jitter", "z_loss", "balance_loss", "importance_loss", "load_loss", "bias_step"}
)
"""The fields that only training looks at: configurations that differ in nothing else are the same function."""


class Difference(NamedTuple):
    """A field that two configurations have different values in.

    Attributes:
        path: the field, as `layers[0].attention.scale`; empty where the configurations are of two classes that say the
            same.
        first: what the first says there; None where it has no such field.
        second: what the second says there, likewise.
    """

    path: str
    first: Any
    second: Any


def same_function(a: Config, b: Config) -> bool:
    """Tell whether both configurations compute the same, whatever they say of training."""
    return next(differences(a, b), None) is None


def differences(a: Config, b: Config, leave_out: Collection[str] = TRAINING_ONLY) -> Iterator[Difference]:
    """Yield the fields by which two configurations differ.

    Numbers count where they differ by more than rounding. Two classes differ, even where they say the same.

    Args:
        a: the first configuration.
        b: the second.
        leave_out: names of fields that do not count, in whatever part of the configuration they stand.
    """
    yield from _differences("", a, b, leave_out)


def _differences(path: str, a: Any, b: Any, leave_out: Collection[str]) -> Iterator[Difference]:
    if isinstance(a, Config) and isinstance(b, Config):
        inner = list(_differing_fields(path, a, b, leave_out))
        yield from inner
        if type(a) is not type(b) and not inner:
            yield Difference(path, a, b)
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for index, pair in enumerate(zip(a, b, strict=True)):
            yield from _differences(f"{path}[{index}]", *pair, leave_out)
    elif isinstance(a, float) and isinstance(b, float):
        if abs(a - b) > 1e-9 * max(abs(a), abs(b)):  # a factor that was written as another one's square
            yield Difference(path, a, b)
    elif a != b:
        yield Difference(path, a, b)


def _differing_fields(path: str, a: Config, b: Config, leave_out: Collection[str]) -> Iterator[Difference]:
    # A part of another kind is named as such first, and then by its fields.
    names = sorted(
        {*type(a).model_fields, *type(b).model_fields} - {*leave_out}, key=lambda name: (name != "kind", name)
    )
    for name in names:
        inner = f"{path}.{name}" if path else name
        if hasattr(a, name) and hasattr(b, name):
            yield from _differences(inner, getattr(a, name), getattr(b, name), leave_out)
        else:
            yield Difference(inner, getattr(a, name, None), getattr(b, name, None))
