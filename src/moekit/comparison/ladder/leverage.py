"""Leverage: how many times the FLOPs the baseline needs for a contestant's loss, both trained by one rule.

The rule is the ladder's own: so many tokens for each N, at every scale and for both. A contestant that has C FLOPs is
then of size N = sqrt(C / 6 r), r tokens for each N, and ends at a loss; the baseline reaches that loss with C' FLOPs,
spent by the same rule. Leverage is C' / C.
"""

import numpy as np

from moekit.comparison.ladder.ladder_fit import LadderFit
from moekit.comparison.ladder.ladder_runs import LadderRuns
from moekit.comparison.ladder.scaling_laws import ScalingLaw

# The baseline's FLOPs are sought so far around the contestant's, in decades.
_REACH = 4.0
_STEPS_A_DECADE = 24


def log_leverage(fitted: LadderFit, contestant: int, flops_f: np.ndarray) -> list[np.ndarray]:
    """Draw the natural logarithm of leverage at so many FLOPs: an array (draws, FLOPs) for each kept law."""
    return [_of_draws(law.law, law.draws_bm, fitted.runs, contestant, flops_f) for law in fitted.kept]


def seed_log_leverage(fitted: LadderFit, contestant: int, flops_f: np.ndarray) -> list[np.ndarray]:
    """Draw the same with nothing but seeds drawn anew."""
    return [_of_draws(law.law, law.seed_draws_bm, fitted.runs, contestant, flops_f) for law in fitted.kept]


def _of_draws(
    law: ScalingLaw, draws_bm: np.ndarray, runs: LadderRuns, contestant: int, flops_f: np.ndarray
) -> np.ndarray:
    low, high = np.log10(flops_f.min()) - _REACH, np.log10(flops_f.max()) + _REACH
    grid_g = np.linspace(low, high, int((high - low) * _STEPS_A_DECADE) + 1)
    # Losses fall with FLOPs; interpolation wants them to rise. Their distance to the floor is what is a power law.
    floor_b1 = law.floor(draws_bm)
    # Where a power law is steep, the grid's far end lies on the floor, to rounding.
    least = np.finfo(np.float64).tiny

    def height(of: int, flops: np.ndarray) -> np.ndarray:
        above = bits_along(law, draws_bm, of, flops, runs.tokens_per_size) - floor_b1
        return np.asarray(-np.log(np.maximum(above, least)))

    wanted_bf, there_bg = height(contestant, flops_f), height(runs.baseline, 10**grid_g)
    needed_bf = np.array([np.interp(w_f, t_g, grid_g) for w_f, t_g in zip(wanted_bf, there_bg, strict=True)])
    return np.asarray(np.log(10) * (needed_bf - np.log10(flops_f)))


def bits_along(
    law: ScalingLaw, parameters_bm: np.ndarray, contestant: int, flops_f: np.ndarray, tokens_per_size: float
) -> np.ndarray:
    """Give bits per byte (b, f) of a contestant that has so many FLOPs, by the ladder's rule."""
    size_f = np.sqrt(flops_f / (6 * tokens_per_size))
    return law.bits(parameters_bm, np.full(len(flops_f), contestant), size_f, tokens_per_size * size_f)
