"""How sure a mean over questions is, by drawing the questions again (the bootstrap of Efron, 1979)."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

_DRAWS = 10_000
# Draws are made so many numbers at a time, so that memory does not grow with the data.
_AT_ONCE = 2_000_000


class Estimate(BaseModel):
    """A mean with the interval that holds 95 % of the means of as many questions drawn with replacement."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Compute the mean of one value a question, and its percentile interval.

    Args:
        values: at least one; for a paired difference, the differences.
        seed: of the draws.
    """
    # It takes most of a second to import, and only whoever evaluates needs it.
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1:  # whatever is drawn is this one, and SciPy wants two
        return Estimate(mean=mean, low=mean, high=mean)
    interval = bootstrap(
        (data,),
        np.mean,
        n_resamples=_DRAWS,
        batch=max(_AT_ONCE // len(data), 1),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean=mean, low=float(interval.low), high=float(interval.high))
