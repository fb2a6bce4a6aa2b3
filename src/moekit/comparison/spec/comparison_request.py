"""What a user asks of a comparison."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from moekit.comparison.spec.contestants import Contestant, Size
from moekit.core.errors import UsageError

# What a comparison may take where nobody says: `moekit compare` is back before a long coffee.
DEFAULT_BUDGET_SECONDS = 660.0


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """A comparison as it is asked for, with all names resolved.

    budget_seconds, tokens: either a budget for everything, or training tokens a run. command: what repeats it.
    optional: contestants that take part too, under a budget where it allows (see moekit.comparison.run.step_budget).
    budget_asked: whether the budget is the user's; the default one is exceeded where the machine is too slow for it.
    tensorboard: whether each run also writes events for TensorBoard. tune: whether each contestant's learning rate is
    searched first.
    """

    contestants: Sequence[Contestant]
    baseline: str
    size_name: str
    size: Size
    seeds: int
    command: str
    optional: Sequence[Contestant] = ()
    budget_seconds: float | None = None
    budget_asked: bool = True
    tokens: int | None = None
    tensorboard: bool = False
    tune: bool = False


def check_tensorboard() -> None:
    """Raise UsageError, which says what to install, where TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard is not installed; get it with: pip install 'moekit[tensorboard]'.")
