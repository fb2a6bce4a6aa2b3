"""Laws and their fits: derivatives, the form that the field writes, the minimum, and what draws are for."""

import numpy as np
import pytest
from scipy.optimize import minimize
from tests.comparison.ladder.sample_ladder import drawn_runs, drawn_world, fixed_world, with_world

from moekit.comparison.ladder.ladder_fit import fit_ladder
from moekit.comparison.ladder.ladder_runs import LadderRuns
from moekit.comparison.ladder.law_fitting import _loss, minimised
from moekit.comparison.ladder.scaling_laws import FORMS, LawForm, LawPoints, ScalingLaw

BY_NAME = {form.name: form for form in FORMS}


def a_ladder(seed: int = 0, **world: float) -> LadderRuns:
    generator = np.random.default_rng(seed)
    return drawn_runs(with_world(drawn_world(generator), **world), generator)


def a_law(form: LawForm, runs: LadderRuns) -> tuple[ScalingLaw, LawPoints]:
    points = runs.points(ends=form.compute)
    law = ScalingLaw(form, runs.expansion_c.tolist(), size=1e6, tokens=6e6, lowest=float(runs.bits_rcp.min()))
    return law, points


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_slopes_are_derivatives(form: LawForm) -> None:
    law, points = a_law(form, a_ladder())
    generator = np.random.default_rng(1)
    at_m = law.start(points, 0.5, 1.0) + generator.normal(0, 0.2, len(law.prior_mean_m))
    _, slopes = law.log_bits_and_slopes(at_m[None], points)
    for one in range(len(at_m)):
        step_m = np.zeros(len(at_m))
        step_m[one] = 1e-5
        high, low = (law.log_bits_and_slopes((at_m + sign * step_m)[None], points)[0][0] for sign in (1, -1))
        np.testing.assert_allclose(slopes[0, :, one], (high - low) / 2e-5, atol=1e-7, rtol=1e-5)


def test_chinchilla_is_chinchilla() -> None:
    """E + A/N^alpha + B/D^beta with the constants of arXiv 2404.10102, at two sizes."""
    law = ScalingLaw(BY_NAME["chinchilla"], [1.0], size=1e9, tokens=2e10, lowest=4.0)
    e, a, b, alpha, beta = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
    floor = np.log(e / 4 / (1 - e / 4))
    parameters = [floor, np.log(alpha / 0.3) + np.log(0.3), np.log(a) - alpha * np.log(1e9), 0]
    parameters += [np.log(beta), np.log(b) - beta * np.log(2e10), 0]
    sizes, tokens = np.array([70e9, 1e8]), np.array([1.4e12, 3e9])
    found = law.bits(np.array([parameters]), np.array([0, 0]), sizes, tokens)[0]
    np.testing.assert_allclose(found, e + a / sizes**alpha + b / tokens**beta, rtol=1e-12)


def test_tied_exponents_follow_the_expansion() -> None:
    law = ScalingLaw(BY_NAME["joint"], [1.0, 4.0, 16.0], size=1e6, tokens=1e6, lowest=2.0)
    parameters_m = law.prior_mean_m.copy()
    parameters_m[5] = 0.1
    dense, four, sixteen = law.exponents(parameters_m[None], 0)[0]
    assert four / dense == pytest.approx(4**0.1)
    assert sixteen / dense == pytest.approx(16**0.1)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_l_bfgs_finds_no_lower_minimum(form: LawForm) -> None:
    """Neither from the same start, where it may end higher, nor from the minimum that was found."""
    law, points = a_law(form, a_ladder())
    target_bn, centre_bm = np.log(points.bits_n)[None], law.prior_mean_m[None]
    start_bm = law.start(points, 0.5, 1.0)[None]

    def loss(at_m: np.ndarray) -> tuple[float, np.ndarray]:
        value_b, slope_bm, _ = _loss(law, points, target_bn, 0.005, centre_bm, at_m[None])
        return float(value_b[0]), slope_bm[0]

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-9}
    found_bm, value_b = minimised(law, points, target_bn, 0.005, centre_bm, start_bm)
    for start_m in (start_bm[0], found_bm[0]):
        sought = minimize(loss, start_m, jac=True, method="L-BFGS-B", options=options)
        assert value_b[0] < sought.fun + 2e-3


def test_a_known_law_is_found_again() -> None:
    """Of a ladder almost without noise, within what the prior moves it."""
    world = fixed_world()
    generator = np.random.default_rng(0)
    runs = drawn_runs(with_world(world, rough=0.0), generator, seeds=40, span=300)
    fitted = next(one for one in fit_ladder(runs, generator, draws=5).laws if one.law.form.name == "chinchilla")
    best = fitted.best_m[None]
    assert fitted.problem is None
    assert fitted.law.floor(best)[0, 0] == pytest.approx(world.floor, abs=0.12)
    np.testing.assert_allclose(fitted.law.exponents(best, 1)[0], world.exponent_2c[1], atol=0.04)


def test_what_the_points_leave_open_the_draws_differ_in() -> None:
    """Two sizes cannot tell E from an exponent of size, four can better: the floor's draws are wider."""
    runs = a_ladder()

    def width(rungs: int) -> float:
        fitted = fit_ladder(runs.upto(rungs), np.random.default_rng(0), draws=60).laws[0]
        return float(np.std(fitted.law.floor(fitted.draws_bm)))

    assert width(2) > 1.15 * width(4)


def test_a_law_that_does_not_fit_is_dropped() -> None:
    runs = a_ladder()
    waves = np.array([1.0, 1.2, 0.85, 1.15])[:, None, None]
    broken = LadderRuns(**{**vars(runs), "bits_rcp": runs.bits_rcp * waves})
    problems = [one.problem for one in fit_ladder(broken, np.random.default_rng(0), draws=2).laws]
    assert all(problem is not None for problem in problems)
