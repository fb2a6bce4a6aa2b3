"""The compiled module, where the package was built with one."""

import importlib
import os
import sys
from functools import lru_cache
from types import ModuleType

from moekit.core.errors import UsageError

INSTRUCTION_SET_VARIABLE = "MOEKIT_INSTRUCTION_SET"
"""The environment variable that makes the native kernels use a lesser instruction set than the best, by its name."""


@lru_cache(maxsize=1)
def _loaded() -> ModuleType | None:
    try:
        module = importlib.import_module("moekit.kernels.native._native")
    except ImportError:  # not built: there was no compiler; or built for another Python or system
        return None
    if asked := os.environ.get(INSTRUCTION_SET_VARIABLE):
        if asked not in (there := module.instruction_sets()):
            raise UsageError(f"{INSTRUCTION_SET_VARIABLE} is {asked!r}, and this machine runs {', '.join(there)}.")
        module.select_instruction_set(asked)
    return module


def available() -> bool:
    """Tell whether the native kernels are there; any processor runs them, if only in their portable form."""
    return _loaded() is not None


def instruction_set() -> str:
    """Name the instruction set in use: `portable`, `avx2`, `avx512`, `avx512_bf16` or `amx`; `none` without kernels."""
    native = _loaded()
    return "none" if native is None else str(native.instruction_set())


def threads() -> int:
    """Tell how many threads the native kernels compute with: as OMP_NUM_THREADS says, at most this process's cores.

    Where torch is in the process, no more than its threads: torch's and ours never have work at the same time, since
    the calls of both return when all is done.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Like OpenMP, which takes a list for nested regions, and no notice of what is no number.
    asked, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")
    wanted = int(asked) if asked.strip().isdecimal() else 0
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):  # not while it is being imported
        wanted = torch.get_num_threads()
    return min(cores, wanted or cores)


def native() -> ModuleType:
    """Give the compiled module, its pool as wide as `threads()`. Raises RuntimeError where `available()` is false."""
    module = _loaded()
    if module is None:
        raise RuntimeError("moekit was installed without its native kernels")
    module.set_threads(threads())
    return module
