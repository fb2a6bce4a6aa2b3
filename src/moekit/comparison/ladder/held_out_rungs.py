"""Rungs predicted from the smaller ones, before they are used: what extrapolation is worth on this ladder."""

from dataclasses import dataclass

import numpy as np

from moekit.comparison.ladder.ladder_fit import DRAWS, LadderFit, fit_ladder
from moekit.comparison.ladder.ladder_runs import LadderRuns
from moekit.comparison.ladder.leverage import log_leverage

# A law of a size and a slope for each contestant is fitted to two rungs at least.
FEWEST_RUNGS = 2
INTERVAL = (10.0, 90.0)


@dataclass(frozen=True)
class Prediction:
    """What a contestant's run at a rung was predicted to end at, in bits per byte, and where it ended.

    low, high: of the 80 % interval.
    """

    rung: int
    contestant: int
    predicted: float
    low: float
    high: float
    got: float

    @property
    def inside(self) -> bool:
        """Say whether the interval holds what came out."""
        return self.low <= self.got <= self.high


@dataclass(frozen=True)
class HeldOut:
    """The largest rung's predictions, and what all held-out rungs say of the extrapolation.

    drift: the standard deviation by which the logarithm of leverage strays in each decade of FLOPs beyond the ladder,
    over what the draws themselves say.
    """

    predictions: tuple[Prediction, ...]
    drift: float


def held_out(whole: LadderFit, generator: np.random.Generator, *, draws: int = DRAWS) -> HeldOut:
    """Predict each rung that has FEWEST_RUNGS below it from those; the last one's predictions are told one by one."""
    runs = whole.runs
    predictions: list[Prediction] = []
    strays: list[tuple[float, float]] = []
    for rung in range(FEWEST_RUNGS, len(runs.tokens_r)):
        before = fit_ladder(runs.upto(rung), generator, draws=draws)
        predictions = [
            _predict(before, runs, rung, one, generator)
            for one in range(len(runs.names))
            if np.isfinite(runs.bits_rcp[rung, one, -1])
        ]
        flops = runs.flops_rc[:, runs.baseline]
        decades = float(np.log10(flops[rung] / flops[rung - 1]))
        for one in range(len(runs.names)):
            if one == runs.baseline:
                continue
            then, now = (
                np.concatenate(log_leverage(fitted, one, flops[rung : rung + 1])) for fitted in (before, whole)
            )
            error = float(np.median(now) - np.median(then))
            strays.append((error**2 / decades**2, float(np.var(then)) / decades**2))
    excess = np.mean([error - own for error, own in strays]) if strays else 0.0
    return HeldOut(tuple(predictions), float(np.sqrt(max(0.0, excess))))


def _predict(before: LadderFit, runs: LadderRuns, rung: int, one: int, generator: np.random.Generator) -> Prediction:
    by_law = before.predicted(one, runs.size_rc[rung, one], runs.tokens_r[rung])
    noise = runs.single_noise / np.sqrt(runs.seeds_r[rung])
    spread = [
        law_b * np.exp(generator.normal(0, np.hypot(noise, fitted.misfit), len(law_b)))
        for law_b, fitted in zip(by_law, before.kept, strict=True)
    ]
    low, high = np.percentile(np.concatenate(spread), INTERVAL)
    middle = float(np.median(np.concatenate(by_law)))
    return Prediction(rung, one, middle, float(low), float(high), float(runs.bits_rcp[rung, one, -1]))
