"""What a user asks of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

from moekit.compare.contestants import Contestant, Size


@dataclass(frozen=True, kw_only=True)
class Request:
    """Either a budget in seconds for everything, or training tokens a run. command: what was typed, for the report."""

    contestants: Sequence[Contestant]
    baseline: str
    size_name: str
    size: Size
    seeds: int
    command: str
    budget_seconds: float | None = None
    tokens: int | None = None
