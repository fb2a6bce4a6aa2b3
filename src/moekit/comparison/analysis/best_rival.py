"""The best of several rivals held against the baseline, without the luck of having been picked.

Of several rivals that equal the baseline the best seems better than it, for it was picked by the figures that it is
judged by. Here each seed is held against the rival that the other seeds pick, as nested cross-validation does (Varma
and Simon 2006, Bias in error estimation when using cross-validation for model selection). So a difference that is not
there shows to either side alike, however many rivals there are; where all seeds agree about the best one, this is the
paired comparison of that one.

D draws, K rivals, S seeds.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from moekit.comparison.analysis.simultaneous import Figures
from moekit.comparison.estimates import Estimate

_LEVEL = 0.95
_DRAWS, _AT_ONCE = 60_000, 5_000

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BestRival:
    """The rival with the lowest mean.

    difference: figures less the baseline's, each seed against its pick. picks: by rival, in how many seeds the others
    picked it. candidates: rivals, copies counted once.
    """

    name: str
    difference: Estimate
    picks: dict[str, int]
    candidates: int


def best_rival(baseline: Figures, rivals: Mapping[str, Figures]) -> BestRival:
    """Find the best of `rivals`, at least one, which have a figure for every seed of `baseline`, at least one.

    The interval holds the truth in 95 of 100 comparisons. Where the seeds disagree about the best rival it is wider
    than Student's, as wide as that takes where all are equal (see `pick_factor`). With one seed there is none.
    """
    names, seeds = list(rivals), sorted(baseline)
    gap_KS = np.array([[rivals[name][seed] - baseline[seed] for seed in seeds] for name in names])
    name = names[int(gap_KS.mean(1).argmin())]
    candidates = len({tuple(gap_S) for gap_S in gap_KS.tolist()})
    if len(seeds) == 1:
        only = Estimate.of([float(gap_KS.min())])
        assert only is not None
        return BestRival(name, only, {name: 1}, candidates)
    pick_S, gap_S = (each[0] for each in _picked(gap_KS[None]))
    mean, error = float(gap_S.mean()), float(gap_S.std(ddof=1)) / math.sqrt(len(seeds))
    half = error * (_students(len(seeds)) if _agreed(gap_KS[None])[0] else pick_factor(candidates, len(seeds)))
    difference = Estimate(mean=mean, low=mean - half, high=mean + half, seeds=len(seeds), spread="interval")
    return BestRival(name, difference, dict(Counter(names[pick] for pick in pick_S)), candidates)


@cache
def pick_factor(rivals: int, seeds: int) -> float:
    """Find how many standard errors hold 0 in 95 % of comparisons of equals, where seeds disagree about the best.

    Found by drawing comparisons of equals, whose noise is normal and the same for all: what seeds have in common
    cancels. The 95 % count those in which seeds agree, which have Student's interval.
    """
    students = _students(seeds)
    if rivals < 2:
        return students
    random = np.random.default_rng(0)
    agreed, ratio = [], []
    for _ in range(_DRAWS // _AT_ONCE):
        figure_DKS = random.standard_normal((_AT_ONCE, rivals + 1, seeds))
        gap_DKS = figure_DKS[:, 1:] - figure_DKS[:, :1]
        _, gap_DS = _picked(gap_DKS)
        agreed.append(_agreed(gap_DKS))
        ratio.append(np.abs(gap_DS.mean(1)) / (gap_DS.std(1, ddof=1) / math.sqrt(seeds)))
    agreed_D, ratio_D = np.concatenate(agreed), np.concatenate(ratio)
    missed = ((ratio_D > students) & agreed_D).mean()  # equals on which seeds agree are a lucky pick more often
    allowed = max(0.0, (1 - _LEVEL - float(missed)) / (1 - float(agreed_D.mean())))
    return max(students, float(np.quantile(ratio_D[~agreed_D], 1 - allowed)))


def _students(seeds: int) -> float:
    return float(stdtrit(seeds - 1, (1 + _LEVEL) / 2))


def _picked(gap_DKS: Array) -> tuple[npt.NDArray[np.intp], Array]:
    """Give pick_DS, the rival that all seeds but one pick, and its gap to the baseline in that one, gap_DS."""
    others_DKS = gap_DKS.sum(2, keepdims=True) - gap_DKS
    pick_DS = others_DKS.argmin(1)
    return pick_DS, np.take_along_axis(gap_DKS, pick_DS[:, None, :], axis=1)[:, 0]


def _agreed(gap_DKS: Array) -> npt.NDArray[np.bool_]:
    """Tell where the same rival is the best in every seed, (D,)."""
    best_DS = gap_DKS.argmin(1)
    agreed_D: npt.NDArray[np.bool_] = (best_DS == best_DS[:, :1]).all(1)
    return agreed_D
