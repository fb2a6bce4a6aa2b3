"""From checkpoints to other checkpoints: upcycling, splitting, merging and quantising, written as a stream.

Each verb is one call; `moekit.convert.verbs` also has what plans each without running it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.convert.verbs import merge, quantize, split, upcycle

__all__ = ["merge", "quantize", "split", "upcycle"]


def __getattr__(name: str) -> Any:
    """Import a verb when it is asked for: each brings torch with it."""
    if name not in __all__:
        raise AttributeError(f"module 'moekit.convert' has no attribute {name!r}")
    from moekit.convert import verbs

    return getattr(verbs, name)
