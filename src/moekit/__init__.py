"""moekit: dense, or mixture of experts? Builds, trains, converts, runs and measures both, and shows what each buys.

Each verb of the command line is a function here: one call, typed arguments, a typed result.

    import moekit

    result = moekit.train("mine.yaml", "runs/mine")
    print(moekit.evaluate(result.model).bits_per_byte)

A function is imported when it is asked for, since torch takes seconds. What is under way is told to a callback, see
`moekit.core.progress`; messages go to the standard `logging`, under the name of the module that says them.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moekit.core.version import __version__ as __version__

if TYPE_CHECKING:
    from moekit.agents import ask
    from moekit.comparison import compare
    from moekit.convert import merge, quantize, split, upcycle
    from moekit.evaluation import evaluate
    from moekit.inference import generate, load_runner
    from moekit.models import load
    from moekit.planning import plan
    from moekit.training import train

__all__ = [
    "ask",
    "compare",
    "evaluate",
    "generate",
    "load",
    "load_runner",
    "merge",
    "plan",
    "quantize",
    "split",
    "train",
    "upcycle",
]

_ROOMS = {
    "ask": "agents",
    "compare": "comparison",
    "evaluate": "evaluation",
    "generate": "inference",
    "load": "models",
    "load_runner": "inference",
    "merge": "convert",
    "plan": "planning",
    "quantize": "convert",
    "split": "convert",
    "train": "training",
    "upcycle": "convert",
}

# Without a handler of the user's, Python would print warnings.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import one of `__all__` from its room when it is asked for."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'moekit' has no attribute {name!r}")
    return getattr(import_module(f"moekit.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """List the functions, whether or not they were asked for yet, and no helper of this file."""
    return sorted(__all__)
