"""What a user asks of a comparison."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from moekit.compare.spec.contestants import Contestant, Size
from moekit.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """Either a budget in seconds for everything, or training tokens a run. command: what was typed, for the report.

    optional: contestants that take part too, under a budget only where it allows (see moekit.compare.run.step_budget).
    budget_asked: whether the budget is the user's; the default one is exceeded where the machine is too slow for it.
    tensorboard: whether each run also writes events for TensorBoard.
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


def check_tensorboard() -> None:
    """Raise UsageError, which says what to install, where TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard is not installed; get it with: pip install 'moekit[tensorboard]'.")
