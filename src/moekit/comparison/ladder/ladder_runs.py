"""What the rungs measured, as arrays: each contestant's mean curve at each rung, and how seeds scattered around it.

Shapes: R rungs, C contestants, P points of a curve, S seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moekit.comparison.ladder.scaling_laws import LawPoints
from moekit.comparison.results_schema import ContestantResults, Results, Run
from moekit.config import ModelConfig, MoEConfig

# Where on a run its curve is taken, where it has taken so many steps by then (its end counts in any case): before, the
# warm-up of fifty steps and the first averages are still to be seen.
SHARES = np.array([0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
FIRST_STEP = 150
# Points of one run are one curve: together they say its level and its slope, and count as two.
_POINTS_IN_A_RUN = 2.0
# Where no contestant has two seeds at any rung, chance is taken to be this, in natural logarithms of bits per byte.
ASSUMED_NOISE = 0.004


@dataclass(frozen=True)
class LadderRuns:
    """The runs of a ladder, smallest rung first.

    expansion_c: see `expansion_of`. size_rc: N, training FLOPs of a token over six. tokens_r: of a run. bits_rcp: bits
    per byte at SHARES of a run, means over its seeds, NaN where none finished. seeds_r: of each run. scatter_scp: what
    each seed of each rung lay beside the mean in natural logarithms, made as wide as single runs are; the seeds of all
    contestants saw the same text, so that a row is drawn whole.
    """

    names: tuple[str, ...]
    baseline: int
    expansion_c: np.ndarray
    size_rc: np.ndarray
    tokens_r: np.ndarray
    bits_rcp: np.ndarray
    seeds_r: np.ndarray
    scatter_scp: np.ndarray

    @property
    def flops_rc(self) -> np.ndarray:
        """Give the training FLOPs of a whole run."""
        return np.asarray(6 * self.size_rc * self.tokens_r[:, None])

    @property
    def tokens_per_size(self) -> float:
        """Give the ladder's allocation: tokens for each N of the baseline, the geometric mean over rungs."""
        return float(np.exp(np.mean(np.log(self.tokens_r / self.size_rc[:, self.baseline]))))

    @property
    def single_noise(self) -> float:
        """Give the standard deviation of one run's end over seeds, in natural logarithms."""
        return float(np.sqrt(np.mean(self.scatter_scp[:, :, -1] ** 2))) if len(self.scatter_scp) else ASSUMED_NOISE

    def upto(self, rungs: int) -> "LadderRuns":
        """Give the ladder of the smallest rungs alone; how seeds scatter is known from all of them."""
        return LadderRuns(
            self.names, self.baseline, self.expansion_c, self.size_rc[:rungs], self.tokens_r[:rungs],
            self.bits_rcp[:rungs], self.seeds_r[:rungs], self.scatter_scp,
        )  # fmt: skip

    def points(self, *, ends: bool = False) -> LawPoints:
        """Give the points of all curves, or their ends alone."""
        rungs, contestants, shares = (index.ravel() for index in np.indices(self.bits_rcp.shape))
        bits_n = self.bits_rcp.ravel()
        chosen_n = np.isfinite(bits_n) & ((SHARES[shares] == 1) | (not ends))
        weight = 1.0 if ends else _POINTS_IN_A_RUN / len(SHARES)
        return LawPoints(
            contestant_n=contestants,
            size_n=self.size_rc[rungs, contestants],
            tokens_n=self.tokens_r[rungs] * SHARES[shares],
            bits_n=bits_n,
            weight_n=np.full(len(bits_n), weight),
            run_n=rungs * len(self.names) + contestants,
        ).where(chosen_n)

    def drawn_noise(self, generator: np.random.Generator) -> np.ndarray:
        """Draw what chance could have added to each mean (R, C, P), seeds drawn anew with their correlations."""
        shape = self.bits_rcp.shape
        if not len(self.scatter_scp):
            own_rc1 = generator.normal(0, ASSUMED_NOISE, (*shape[:2], 1)) / np.sqrt(self.seeds_r)[:, None, None]
            return np.asarray(np.broadcast_to(own_rc1, shape))
        chosen = [generator.integers(len(self.scatter_scp), size=int(seeds)) for seeds in self.seeds_r]
        return np.stack([self.scatter_scp[rows].mean(axis=0) for rows in chosen])


def expansion_of(contestant: ContestantResults) -> float:
    """Give total over active feed-forward parameters, a mean over layers: 1 for dense, 4 for 2 of 8 experts."""
    if not isinstance(contestant.config, ModelConfig):
        return 1.0
    ratios = []
    for layer in contestant.config.feed_forwards:
        if isinstance(layer, MoEConfig):
            beside = layer.branch_width or 0 if layer.branch is not None else 0
            active = layer.router.experts_per_token * layer.expert_width + beside
            ratios.append((layer.experts * layer.expert_width + beside) / active)
        else:
            ratios.append(1.0)
    return sum(ratios) / len(ratios)


def ladder_runs(rungs: Sequence[Results]) -> LadderRuns:
    """Read the rungs' results, smallest first; those take part who are in all of them."""
    first = rungs[0]
    names = tuple(one.name for one in first.contestants if all(_find(rung, one.name) for rung in rungs))
    grid = [[_need(rung, name) for name in names] for rung in rungs]
    curves = [[[_curve(run) for run in one.runs] for one in row] for row in grid]
    bits_rcp = np.array([[_mean(runs) for runs in row] for row in curves])
    scatter = [part for row, means in zip(curves, bits_rcp, strict=True) for part in _scatter(row, means)]
    return LadderRuns(
        names=names,
        baseline=names.index(first.baseline),
        expansion_c=np.array([expansion_of(one) for one in grid[0]]),
        size_rc=np.array([[one.flops_per_token / 6 for one in row] for row in grid]),
        tokens_r=np.array([float(rung.settings.tokens) for rung in rungs]),
        bits_rcp=bits_rcp,
        seeds_r=np.array([len(rung.settings.seeds) for rung in rungs]),
        scatter_scp=np.array(scatter).reshape(len(scatter), len(names), len(SHARES)),
    )


def _find(results: Results, name: str) -> ContestantResults | None:
    return next((one for one in results.contestants if one.name == name), None)


def _need(results: Results, name: str) -> ContestantResults:
    found = _find(results, name)
    assert found is not None
    return found


def _curve(run: Run) -> np.ndarray:
    """Give a run's bits per byte at SHARES, linear in logarithms between its points; NaN where it does not count."""
    points = [point for point in run.curve if math.isfinite(point.bits_per_byte) and point.tokens > 0]
    if run.status != "done" or not points:
        return np.full(len(SHARES), np.nan)
    at = np.log(SHARES * points[-1].tokens)
    seen = np.log([point.tokens for point in points])
    bits = np.exp(np.interp(at, seen, np.log([point.bits_per_byte for point in points])))
    return np.where((SHARES * points[-1].step >= FIRST_STEP) | (SHARES == 1), bits, np.nan)


def _mean(runs: list[np.ndarray]) -> np.ndarray:
    done = [run for run in runs if np.isfinite(run[-1])]
    return np.asarray(np.exp(np.mean(np.log(done), axis=0))) if done else np.full(len(SHARES), np.nan)


def _scatter(row: list[list[np.ndarray]], means_cp: np.ndarray) -> list[np.ndarray]:
    """Give one rung's deviations, a table (C, P) a seed; nothing where there is a single seed."""
    seeds = min(len(runs) for runs in row)
    if seeds < 2:
        return []
    wider = math.sqrt(seeds / (seeds - 1))  # a mean over few lies nearer to each of them than the truth does
    tables = [np.log([runs[seed] for runs in row]) - np.log(means_cp) for seed in range(seeds)]
    return [wider * np.nan_to_num(table) for table in tables]
