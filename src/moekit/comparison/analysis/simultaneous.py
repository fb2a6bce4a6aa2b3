"""Several contestants held against one baseline at once: intervals that are widened for their number.

Of several contestants that equal the baseline the best seems better too often, where each interval is made as if it
were the only one. These are Dunnett's (1955, A multiple comparison procedure for comparing several treatments with a
control): with 95 % probability all hold the true difference. The noise is estimated from all contestants together, less
what a seed does to all of them alike.

C contestants, the baseline first; N seeds.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, ndtr

from moekit.comparison.analysis.estimates import Estimate

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
    noise, degrees = _noise([baseline, *(contestants[name] for name in own)])
    if len(own) < 2 or degrees < 2:
        return own
    factor = dunnett_factor(len(own), degrees) * noise
    return {name: _widened(estimate, factor * math.sqrt(2 / estimate.seeds)) for name, estimate in own.items()}


@cache
def dunnett_factor(contestants: int, degrees: int) -> float:
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
    return Estimate(estimate.mean, low, high, estimate.seeds, "interval")


def _noise(figures: Sequence[Figures]) -> tuple[float, int]:
    """Estimate the noise of a run, and its degrees of freedom: a figure is its contestant's, its seed's, and noise."""
    seeds = sorted({seed for each in figures for seed in each})
    cells = [(place, seeds.index(seed), figure) for place, each in enumerate(figures) for seed, figure in each.items()]
    design = np.zeros((len(cells), len(figures) + len(seeds)))
    for row, (place, seed, _) in enumerate(cells):
        design[row, place] = design[row, len(figures) + seed] = 1
    values: npt.NDArray[np.float64] = np.array([figure for *_, figure in cells])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    degrees = len(cells) - int(rank)
    squares = float(((values - design @ solution) ** 2).sum())
    return (math.sqrt(squares / degrees) if degrees > 0 else 0.0), degrees
