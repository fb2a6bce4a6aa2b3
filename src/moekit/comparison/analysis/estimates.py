"""How sure several seeds make us of a mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

# The inverse of Student's t: what scipy.stats.t.ppf calls, of a package that is imported in less than half the time.
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and how far it can be trusted.

    spread: `interval`, the 95 % t-interval of the mean (three seeds or more); `range`, the smallest and the
    largest value (two seeds); `none` (one seed): `low` and `high` are then the mean itself and say nothing.
    """

    mean: float
    low: float
    high: float
    seeds: int
    spread: Literal["interval", "range", "none"]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Estimate from one value a seed, by arithmetic mean; gives None where there is no value."""
        count = len(values)
        if count == 0:
            return None
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, mean, mean, 1, "none")
        if count == 2:
            return cls(mean, min(values), max(values), 2, "range")
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
        return cls(mean, mean - half, mean + half, count, "interval")

    @classmethod
    def of_ratios(cls, values: Sequence[float]) -> Self | None:
        """Estimate on the logarithms (the mean is geometric): a ratio and its inverse then tell the same story."""
        if any(value <= 0 for value in values):
            return cls.of(values)
        logs = cls.of([math.log(value) for value in values])
        if logs is None:
            return None
        return cls(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.seeds, logs.spread)

    def side(self, of: float) -> int:
        """Give -1 or 1 where all of the interval (or range) lies below or above `of`, 0 where it holds it."""
        return -1 if self.high < of else 1 if self.low > of else 0
