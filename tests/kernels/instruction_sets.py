"""Native kernels of another instruction set than the best, for as long as a test takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from moekit.kernels.native import instruction_set
from moekit.kernels.native.module import native


@contextmanager
def using_instruction_set(name: str) -> Iterator[str]:
    """Those of the set `name`; afterwards what was chosen before."""
    best = instruction_set()
    native().select_instruction_set(name)
    try:
        yield name
    finally:
        native().select_instruction_set(best)
