"""Fitting a law, and drawing laws that fit as well: what the data leave open, the draws differ in.

As Hoffmann et al. do (arXiv 2203.15556, appendix D.2), a fit minimises the Huber loss of residuals of logarithms from a
grid of starts. Residuals are in units of their own noise, which is estimated from them, and a weak prior holds what the
points do not say (two sizes do not tell E from an exponent). A draw is the same fit to points with noise of a run's
kind added, and to a prior whose centre is drawn from itself (randomised maximum a posteriori): a parameter that the
points determine stays where it is, one that they do not has the prior's spread. All starts, and all draws, are
minimised side by side, by Levenberg and Marquardt's method; it ends where L-BFGS
does, or lower.

Shapes: b fits at once, m parameters, n points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moekit.comparison.ladder.scaling_laws import LawPoints, ScalingLaw

_HUBER = 1.5  # residuals up to so many standard deviations count squared
_STARTS = [(share, exponent) for share in (0.2, 0.5, 0.8) for exponent in (0.5, 1.0, 2.0)]
_STEPS, _ENOUGH, _SHORTEST = 100, 1e-4, 1e2  # most steps; least gain of one; most damping of one that gains nothing
# Held-out text is a sample and rounding is not free: no run is known better than to a thousandth.
SMALLEST_NOISE = 0.001
# An exponent or a floor beyond these has run away: the law then says something of a corner and not of the points.
_EXPONENTS = (0.02, 1.5)
_FLOORS = (0.02, 0.98)
_POOR_FIT = 0.03

Noise = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class FittedLaw:
    """A law with its best parameters and draws of others that fit.

    seed_draws_bm: fits to points with seeds drawn anew and nothing else. misfit: the standard deviation of runs around
    the law beyond chance, in natural logarithms. problem: why the law is not used, in words; None where it is.
    """

    law: ScalingLaw
    best_m: np.ndarray
    draws_bm: np.ndarray
    seed_draws_bm: np.ndarray
    misfit: float
    problem: str | None


def fit(
    law: ScalingLaw, points: LawPoints, noise: Noise, generator: np.random.Generator, *, draws: int, seed_noise: float
) -> FittedLaw:
    """Fit a law.

    Args:
        law: to fit.
        points: of the curves.
        noise: draws what chance could have added to the logarithm of each point (n), correlated as it is.
        generator: of all randomness.
        draws: how many others to draw.
        seed_noise: the standard deviation of the mean over a run's seeds, in natural logarithms.
    """
    seen_n, spread = np.log(points.bits_n), max(seed_noise, SMALLEST_NOISE)
    starts_bm = np.array([law.start(points, *at) for at in _STARTS])
    best_m = _best(law, points, spread, starts_bm)
    spread = float(np.hypot(spread, _misfit(law, best_m, points)))
    best_m = _best(law, points, spread, best_m[None])
    misfit = _misfit(law, best_m, points)
    _, run_n = np.unique(points.run_n, return_inverse=True)
    weight, free = float(points.weight_n.sum()), _free(law, best_m, points, spread)
    # What residuals show beyond chance is the law's own; a fit of many parameters hides a part of both, and few degrees
    # of freedom say little of how large it is.
    lacking = float(np.sqrt(max(misfit**2 * weight / free - seed_noise**2, SMALLEST_NOISE**2)))
    lacking_b1 = lacking * np.sqrt(free / generator.chisquare(free, (draws, 1)))
    lacking_br = generator.normal(size=(draws, run_n.max() + 1)) * lacking_b1
    chance_bn = np.array([noise(generator) for _ in range(draws)])
    centre_bm = law.prior_mean_m + generator.normal(size=(draws, len(best_m))) * law.prior_spread_m
    starts_bm = np.tile(best_m, (draws, 1))
    target_bn = seen_n + chance_bn + lacking_br[:, run_n]
    others_bm, _ = minimised(law, points, target_bn, spread, centre_bm, starts_bm)
    centre_bm = np.tile(law.prior_mean_m, (draws, 1))
    by_seeds_bm, _ = minimised(law, points, seen_n + chance_bn, spread, centre_bm, starts_bm)
    return FittedLaw(law, best_m, others_bm, by_seeds_bm, lacking, _problem(law, best_m, misfit))


def minimised(
    law: ScalingLaw,
    points: LawPoints,
    target_bn: np.ndarray,
    spread: float,
    centre_bm: np.ndarray,
    start_bm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the minima next to starts, and the loss there (b).

    Args:
        law: whose parameters are sought.
        points: where it is held against `target_bn`.
        target_bn: logarithms of bits per byte.
        spread: the standard deviation of a residual.
        centre_bm: of the prior.
        start_bm: where to start.
    """
    found_bm, value_b = start_bm.copy(), np.empty(len(start_bm))
    going_b = np.arange(len(start_bm))  # the fits that still gain
    value_b[:], slope_bm, curvature_bmm = _loss(law, points, target_bn, spread, centre_bm, found_bm)
    damping_b = np.full(len(found_bm), 1e-3)
    diagonal = np.arange(found_bm.shape[1])
    for _ in range(_STEPS):
        damped_bmm = curvature_bmm.copy()
        damped_bmm[:, diagonal, diagonal] *= 1 + damping_b[:, None]
        tried_bm = found_bm[going_b] - np.linalg.solve(damped_bmm, slope_bm[:, :, None])[:, :, 0]
        new_b, new_slope_bm, new_curvature_bmm = _loss(
            law, points, target_bn[going_b], spread, centre_bm[going_b], tried_bm
        )
        gained_b = value_b[going_b] - new_b
        better_b = gained_b > 0
        found_bm[going_b[better_b]], value_b[going_b[better_b]] = tried_bm[better_b], new_b[better_b]
        slope_bm = np.where(better_b[:, None], new_slope_bm, slope_bm)
        curvature_bmm = np.where(better_b[:, None, None], new_curvature_bmm, curvature_bmm)
        # A fit that got no better is tried again with a shorter step, until its step is next to nothing.
        damping_b = damping_b * np.where(better_b, 0.2, 8.0)
        on_b = np.where(better_b, gained_b > _ENOUGH, damping_b < _SHORTEST)
        going_b, damping_b, slope_bm = going_b[on_b], damping_b[on_b], slope_bm[on_b]
        curvature_bmm = curvature_bmm[on_b]
        if not len(going_b):
            break
    return found_bm, value_b


def _loss(
    law: ScalingLaw, points: LawPoints, target_bn: np.ndarray, spread: float, centre_bm: np.ndarray, at_bm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the loss (b), its slope (b, m), and its curvature as Gauss and Newton take it (b, m, m)."""
    predicted_bn, slopes_bnm = law.log_bits_and_slopes(at_bm, points)
    residual_bn = (predicted_bn - target_bn) / spread
    away_bm = (at_bm - centre_bm) / law.prior_spread_m
    size_bn = np.maximum(np.abs(residual_bn), 1e-12)
    huber_bn = np.where(size_bn <= _HUBER, size_bn**2 / 2, _HUBER * (size_bn - _HUBER / 2))
    weight_bn = points.weight_n * np.minimum(1, _HUBER / size_bn)
    slopes_bnm /= spread
    turned_bmn = slopes_bnm.transpose(0, 2, 1)
    curvature_bmm = (turned_bmn * weight_bn[:, None]) @ slopes_bnm + np.diag(law.prior_spread_m**-2.0)
    slope_bm = (turned_bmn @ (weight_bn * residual_bn)[:, :, None])[:, :, 0] + away_bm / law.prior_spread_m
    return huber_bn @ points.weight_n + (away_bm**2).sum(axis=1) / 2, slope_bm, curvature_bmm


def _best(law: ScalingLaw, points: LawPoints, spread: float, starts_bm: np.ndarray) -> np.ndarray:
    """Give the best of the minima next to starts."""
    target_bn = np.tile(np.log(points.bits_n), (len(starts_bm), 1))
    centre_bm = np.tile(law.prior_mean_m, (len(starts_bm), 1))
    found_bm, value_b = minimised(law, points, target_bn, spread, centre_bm, starts_bm)
    return np.asarray(found_bm[np.argmin(value_b)])


def _misfit(law: ScalingLaw, parameters_m: np.ndarray, points: LawPoints) -> float:
    """Say by how much runs lie beside the law, beyond what chance and the number of parameters explain."""
    predicted_n = np.log(law.bits(parameters_m[None], points.contestant_n, points.size_n, points.tokens_n)[0])
    residual_n = predicted_n - np.log(points.bits_n)
    means = [float(np.mean(residual_n[points.run_n == run])) for run in np.unique(points.run_n)]
    return float(np.sqrt(np.mean(np.square(means))))


def _free(law: ScalingLaw, best_m: np.ndarray, points: LawPoints, spread: float) -> float:
    """Give the degrees of freedom that the parameters leave, each run counting as its weight; a quarter at least."""
    _, _, curvature_bmm = _loss(law, points, np.log(points.bits_n)[None], spread, law.prior_mean_m[None], best_m[None])
    prior_mm = np.diag(law.prior_spread_m**-2.0)
    used = float(np.trace(np.linalg.solve(curvature_bmm[0], curvature_bmm[0] - prior_mm)))
    weight = float(points.weight_n.sum())
    return max(weight - used, weight / 4)


def _problem(law: ScalingLaw, best_m: np.ndarray, misfit: float) -> str | None:
    exponents = np.concatenate([law.exponents(best_m[None], term)[0] for term in range(law.terms)])
    share = float(law.floor(best_m[None])[0, 0]) / law.lowest
    if exponents.min() < _EXPONENTS[0] or exponents.max() > _EXPONENTS[1]:
        return f"its exponents ran away, from {exponents.min():.2g} to {exponents.max():.2g}"
    if not _FLOORS[0] < share < _FLOORS[1]:
        return f"its floor ran away, to {share:.2g} of the lowest loss"
    if misfit > _POOR_FIT:
        return f"runs lie {100 * misfit:.1f} % beside it"
    return None
