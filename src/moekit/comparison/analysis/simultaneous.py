"""Several contestants held against one baseline at once: intervals that are widened for their number.

Of several contestants that equal the baseline the best seems better too often, where each interval is made as if it
were the only one. These are Dunnett's (1955, A multiple comparison procedure for comparing several treatments with a
control): with 95 % probability all hold the true difference. The noise is estimated from all contestants together, less
what a seed does to all of them alike, and the baseline's apart from that of the others, for all differences share it.

C contestants beside the baseline, S seeds.
"""

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, ndtr

from moekit.comparison.estimates import Estimate

_LEVEL = 0.95
_NODES = 64  # of the integral over the baseline's error
_QUANTILES = 2000  # of the integral over the estimate of the noise

Figures = Mapping[int, float]
"""A figure by seed."""


def differences(baseline: Figures, contestants: Mapping[str, Figures]) -> dict[str, Estimate]:
    """Estimate each contestant's figure less the baseline's, over the seeds of both.

    No interval is narrower than the contestant's own t-interval, which alone knows where its runs differ more than
    those of others. With one contestant these are t-intervals, and with one seed there is none.
    """
    paired = {
        name: [figure - baseline[seed] for seed, figure in sorted(figures.items()) if seed in baseline]
        for name, figures in contestants.items()
    }
    own = {name: estimate for name, values in paired.items() if (estimate := Estimate.of(values))}
    whole = [values for values in paired.values() if len(values) == len(baseline)]
    if len(own) < 2 or len(whole) < 2 or len(baseline) < 2:
        return own
    noise, degrees = _noise(np.array(whole))
    factor = dunnett_factor(len(own), degrees) * noise
    return {name: _widened(estimate, factor / math.sqrt(estimate.seeds)) for name, estimate in own.items()}


@cache
def dunnett_factor(contestants: int, degrees: float) -> float:
    """Find how many standard errors hold all differences to the baseline with a probability of 95 %.

    Args:
        contestants: held against the baseline, which has as many runs as each of them.
        degrees: of freedom of the estimate of the noise.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    weight /= weight.sum()
    upper = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    scale = np.sqrt(chdtri(degrees, upper) / degrees)  # of the noise's estimate to the noise
    low, high = 0.0, 1000.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        reach = math.sqrt(2) * middle * scale[:, None]
        inside = (ndtr(node + reach) - ndtr(node - reach)) ** contestants
        low, high = (middle, high) if float((inside @ weight).mean()) < _LEVEL else (low, middle)
    return high


def _widened(estimate: Estimate, half: float) -> Estimate:
    """Widen an interval to at least `half` on each side of its mean; one run has none."""
    if estimate.seeds < 2:
        return estimate
    low, high = min(estimate.low, estimate.mean - half), max(estimate.high, estimate.mean + half)
    return estimate.model_copy(update={"low": low, "high": high})


def _noise(gap_CS: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Estimate how much a difference to the baseline varies with the seed, and the degrees of freedom of that.

    A figure is its contestant's, its seed's, and noise. The mean over contestants varies by the baseline's noise and a
    part of theirs, and what is left by theirs. Their sum has the degrees of freedom of Satterthwaite (1946, An
    approximate distribution of estimates of variance components), rounded down to a half.

    Args:
        gap_CS: figures less the baseline's of two contestants or more, in two seeds or more.
    """
    contestants, seeds = gap_CS.shape
    mean_S = gap_CS.mean(0)
    left_CS = gap_CS - mean_S - gap_CS.mean(1, keepdims=True) + mean_S.mean()
    shared, shared_degrees = float(mean_S.var(ddof=1)), seeds - 1
    own_degrees = (contestants - 1) * (seeds - 1)
    own = float((left_CS**2).sum()) / own_degrees * (1 - 1 / contestants)
    if shared + own == 0:
        return 0.0, 1.0
    degrees = (shared + own) ** 2 / (shared**2 / shared_degrees + own**2 / own_degrees)
    return math.sqrt(shared + own), math.floor(2 * degrees) / 2
