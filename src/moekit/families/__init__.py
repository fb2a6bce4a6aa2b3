"""The families of models, as data: published configurations, and Hugging Face's folders. A file each.

`catalogue.py` has the one list of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.families.catalogue import FAMILIES, describe, family_of, preset, presets
    from moekit.families.family import Family, Preset
    from moekit.families.settings import Settings

__all__ = ["FAMILIES", "Family", "Preset", "Settings", "describe", "family_of", "preset", "presets"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: GGUF files need none of the families of folders, and wait for none."""
    if name not in __all__:
        raise AttributeError(f"module 'moekit.families' has no attribute {name!r}")
    from moekit.families import catalogue

    return getattr(catalogue, name)
