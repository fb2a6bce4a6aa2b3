"""moekit: dense, or mixture of experts? Builds, trains, converts, runs and measures both, and shows what each buys.

import moekit

model = moekit.load("./my-model")     # a Hugging Face folder, a hub id, or an n-gram model's .arpa file
logits = model(tokens)
model.save("./again")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.models import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` imports torch, which takes seconds, so only when it is asked for."""
    if name == "load":
        from moekit.models import load

        return load
    raise AttributeError(f"module 'moekit' has no attribute {name!r}")
