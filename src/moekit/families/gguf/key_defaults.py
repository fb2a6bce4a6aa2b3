"""What keys mean that a GGUF file lacks."""

from collections.abc import Mapping
from typing import Any, TypeVar

from moekit.checkpoint.gguf import Metadata

T = TypeVar("T", int, float, bool, str)

DEFAULTS: Mapping[str, Any] = {
    "expert_count": 0,
    "attention.sliding_window": 0,
    "rope.freq_base": 10_000.0,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 0.0,  # none
    "rope.scale_linear": 0.0,  # the factor's name in files of 2023
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
"""What llama.cpp takes each to be, by its name behind the architecture's (load_hparams in src/llama-model.cpp).

All others follow from what is there (`attention.head_count_kv` from `attention.head_count`, a head's width from the
model's), lie in tensors, or are required.
"""


def get_or_default(metadata: Metadata, kind: type[T], prefix: str, key: str) -> T:
    """Give the value at `key` of the architecture `prefix`, or what it means that there is none."""
    found: T = metadata.get_as(kind, f"{prefix}.{key}", DEFAULTS[key])
    return found
