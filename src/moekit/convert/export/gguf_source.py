"""What a GGUF file that is quantised again keeps of the file that it is made of."""

from pathlib import Path
from typing import Any

import numpy as np

from moekit.checkpoint.gguf import GGUFFile, Strings, Written
from moekit.kernels.packed import BF16, F16, F32

_KEPT = ("tokenizer.", "general.name", "moekit.")
_PLAIN = {kind.name.upper() for kind in (F32, F16, BF16)}


def kept_metadata(source: Path) -> dict[str, Written]:
    """Give the keys of a GGUF file that are not of its weights: its name and its tokenizer, as they are."""
    metadata = GGUFFile(source).metadata
    return {key: _written(value) for key, value in metadata.items() if key.startswith(_KEPT)}


def requantized_note(source: Path) -> list[str]:
    """Say that numbers are rounded a second time, where those of a GGUF file were packed already."""
    packed = {tensor.type.name for tensor in GGUFFile(source).tensors.values()} - _PLAIN
    if not packed:
        return []
    return [f"{source} is quantised already ({', '.join(sorted(packed))}); of the original model less would be lost."]


def _written(value: Any) -> Written:
    if isinstance(value, Strings):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype == np.uint8 else value.tolist()
    return value  # type: ignore[no-any-return]
