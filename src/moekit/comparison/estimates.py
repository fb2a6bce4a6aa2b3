"""How sure several seeds make us of a mean."""

import math
from collections.abc import Sequence
from typing import Literal, Self

# The inverse of Student's t: what scipy.stats.t.ppf calls, of a package that is imported in less than half the time.
from scipy.special import stdtrit

from moekit.config import Config


class Estimate(Config):
    """A mean over seeds and how far it can be trusted.

    spread: `interval`, the 95 % interval of the mean (two seeds or more); `none` (one seed): `low` and `high` are then
    the mean itself and say nothing.
    """

    mean: float
    low: float
    high: float
    seeds: int
    spread: Literal["interval", "none"]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Estimate from one value a seed, by arithmetic mean and Student's t; gives None where there is no value."""
        count = len(values)
        if count == 0:
            return None
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean=mean, low=mean, high=mean, seeds=1, spread="none")
        half = float(stdtrit(count - 1, 0.975)) * standard_error(values)
        return cls(mean=mean, low=mean - half, high=mean + half, seeds=count, spread="interval")

    @classmethod
    def of_ratios(cls, values: Sequence[float]) -> Self | None:
        """Estimate on the logarithms (the mean is geometric): a ratio and its inverse then tell the same story."""
        if any(value <= 0 for value in values):
            return cls.of(values)
        logs = cls.of([math.log(value) for value in values])
        if logs is None:
            return None
        low, mean, high = (_exp(value) for value in (logs.low, logs.mean, logs.high))
        return cls(mean=mean, low=low, high=high, seeds=logs.seeds, spread=logs.spread)

    def side(self, of: float) -> int:
        """Give -1 or 1 where all of the interval lies below or above `of`, 0 where it holds it."""
        return -1 if self.high < of else 1 if self.low > of else 0


def standard_error(values: Sequence[float]) -> float:
    """Give the standard error of the mean of two values or more."""
    count = len(values)
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def _exp(value: float) -> float:
    """Take the exponential, as large as numbers go: two seeds that differ much know nothing of a ratio."""
    return math.exp(min(value, 700.0))
