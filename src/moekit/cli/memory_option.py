"""`--memory`, of the verbs that compute with a model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from moekit.cli.quantities import parse_bytes

if TYPE_CHECKING:
    from moekit.placement import MemoryOptions

_Command = TypeVar("_Command", bound=Callable[..., None])


def memory_option() -> Callable[[_Command], _Command]:
    """Add the option to a command."""
    return click.option(
        "--memory",
        metavar="SIZE",
        help="What the process may take, like 4GB; of a GGUF file, what has no place is read from disk when it is "
        "needed.  [default: what is free]",
    )


def memory_options(memory: str | None, sequences: int = 1) -> "MemoryOptions":
    """Read the option; what lies where will be shown as a table, before loading."""
    from moekit.cli.placement_table import print_placement
    from moekit.placement import MemoryOptions

    budget = None if memory is None else parse_bytes(memory)
    return MemoryOptions(budget=budget, sequences=sequences, on_placed=print_placement)
