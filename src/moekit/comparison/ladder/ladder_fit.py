"""All laws fitted to a ladder: what they predict, together with what chance and their own misfit may add.

The forms that are kept count alike. What they differ in is the interval's share from the choice of law.
"""

from dataclasses import dataclass

import numpy as np

from moekit.comparison.ladder.ladder_runs import LadderRuns
from moekit.comparison.ladder.law_fitting import SMALLEST_NOISE, FittedLaw, fit
from moekit.comparison.ladder.scaling_laws import FORMS, ScalingLaw

DRAWS = 200


@dataclass(frozen=True)
class LadderFit:
    """The laws fitted to the rungs of a ladder; `kept` are those without a problem, all of them where each has one."""

    runs: LadderRuns
    laws: tuple[FittedLaw, ...]

    @property
    def kept(self) -> tuple[FittedLaw, ...]:
        """Give the laws that predictions rest on."""
        return tuple(law for law in self.laws if law.problem is None) or self.laws

    def predicted(self, contestant: int, size: float, tokens: float) -> list[np.ndarray]:
        """Draw bits per byte of a model of that size after that many tokens: an array of draws for each kept law."""
        at = np.array([contestant]), np.array([size]), np.array([tokens])
        return [fitted.law.bits(fitted.draws_bm, *at)[:, 0] for fitted in self.kept]


def fit_ladder(runs: LadderRuns, generator: np.random.Generator, *, draws: int = DRAWS) -> LadderFit:
    """Fit every form of law to the ladder, each with `draws` draws."""
    middle_size = float(np.exp(np.log(runs.size_rc).mean()))
    middle_tokens = float(np.exp(np.log(runs.tokens_r).mean()))
    lowest = float(np.nanmin(runs.bits_rcp))
    noise = max(runs.single_noise / float(np.sqrt(runs.seeds_r.mean())), SMALLEST_NOISE)
    fitted = []
    for form in FORMS:
        points = runs.points(ends=form.compute)
        law = ScalingLaw(
            form, [float(one) for one in runs.expansion_c], size=middle_size, tokens=middle_tokens, lowest=lowest
        )
        finite_rcp = np.isfinite(runs.bits_rcp)
        if form.compute:
            finite_rcp = finite_rcp & (np.arange(finite_rcp.shape[2]) == finite_rcp.shape[2] - 1)

        def drawn(inner: np.random.Generator, chosen: np.ndarray = finite_rcp) -> np.ndarray:
            return np.asarray(runs.drawn_noise(inner)[chosen])

        fitted.append(fit(law, points, drawn, generator, draws=draws, seed_noise=noise))
    return LadderFit(runs, tuple(fitted))
