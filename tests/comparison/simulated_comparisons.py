"""Comparisons whose truth is known, drawn at random, and how often the verdict on them is false.

Each is a whole `Results`, given to the same function as a real one. C contestants, the baseline first; S seeds.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tests.comparison.sample_results import DENSE, MOE, SHARED, contestant, curve, model, results, run

from moekit.comparison.analysis.verdict import judge
from moekit.comparison.results_schema import ContestantResults, Results, Run

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]

_LEVEL, _SCALE = 2.0, 0.01  # bits per byte, and their noise

NOISE: dict[str, Draw] = {
    "normal": lambda random, shape: random.normal(size=shape),
    "heavy tails (Student's t, 3 degrees)": lambda random, shape: random.standard_t(3, size=shape),
    "skewed (exponential)": lambda random, shape: random.exponential(size=shape) - 1,
    "one run in ten six times as noisy": lambda random, shape: (
        random.normal(size=shape) * np.where(random.random(shape) < 0.1, 6, 1)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What comparisons are drawn from, in units of the noise of a run.

    truth: of each contestant, the baseline's first. deviations: the noise of each; None for 1. shared: noise that a
    seed does to all alike. of_rivals: noise that a seed does to all but the baseline. noise: the form of a run's own.
    kinds: of each contestant, `dense`, `moe` or `hybrid`; those that have the baseline's are no rivals of it.
    """

    seeds: int
    truth: Sequence[float]
    deviations: Sequence[float] | None = None
    shared: float = 0.0
    of_rivals: float = 0.0
    noise: str = "normal"
    kinds: Sequence[str] = field(default=())

    def draw(self, random: np.random.Generator) -> Array:
        """Draw final bits per byte, (C, S)."""
        shape = (len(self.truth), self.seeds)
        figures = NOISE[self.noise](random, shape) * np.reshape(self.deviations or [1.0] * shape[0], (-1, 1))
        figures += np.reshape(self.truth, (-1, 1)) + self.shared * random.normal(size=self.seeds)
        figures[1:] += self.of_rivals * random.normal(size=self.seeds)
        return _LEVEL + _SCALE * figures

    @property
    def names(self) -> list[str]:
        """The contestants' names."""
        return ["dense", *(f"rival-{index}" for index in range(1, len(self.truth)))]


_LAYERS = {"dense": [DENSE] * 2, "moe": [MOE] * 2, "hybrid": [DENSE, SHARED]}
_RUN = run(0, _LEVEL, domains=()).model_copy(update={"decode_ms": [], "experts_by_domain": []})


def comparison_of(figures_CS: Array, setup: Setup) -> Results:
    """Make the results of a comparison that ended at these figures."""
    seeds = range(setup.seeds)
    kinds = setup.kinds or ["dense", *["moe"] * (len(setup.truth) - 1)]
    made = [
        _contestant(name, kind, [_run(seed, float(final)) for seed, final in zip(seeds, final_S, strict=True)])
        for name, kind, final_S in zip(setup.names, kinds, figures_CS, strict=True)
    ]
    return results(made, seeds=list(seeds), baseline="dense")


def _run(seed: int, final: float) -> Run:
    points = curve(final, speed=50_000, flops_per_token=6e6, points=4)
    return _RUN.model_copy(update={"seed": seed, "bits_per_byte": final, "curve": points})


def _contestant(name: str, kind: str, runs: list[Run]) -> ContestantResults:
    return contestant(name, model(_LAYERS[kind]), runs, total=100, active=100)


@dataclass(frozen=True)
class Tally:
    """How often, of `comparisons`, the verdict said something false.

    rival, baseline: that a rival, or the baseline, is better where the best rival's truth is not. covered: the interval
    of the stated difference holds the truth of the leader. decided: there was an answer, true or false.
    """

    comparisons: int
    rival: float
    baseline: float
    covered: float
    decided: float


def tally_of(setup: Setup, comparisons: int, seed: int = 0) -> Tally:
    """Draw that many comparisons and judge them."""
    counts: Counter[str] = Counter()
    for truth, found in _judged(setup, comparisons, seed):
        counts.update(_said(setup, truth, found))
    return Tally(comparisons, *(counts[name] / comparisons for name in ("rival", "baseline", "covered", "decided")))


def _judged(setup: Setup, comparisons: int, seed: int) -> Iterator[tuple[dict[str, float], Results]]:
    random = np.random.default_rng(seed)
    truth = {name: _SCALE * (each - setup.truth[0]) for name, each in zip(setup.names, setup.truth, strict=True)}
    for _ in range(comparisons):
        yield truth, comparison_of(setup.draw(random), setup)


def _said(setup: Setup, truth: dict[str, float], comparison: Results) -> list[str]:
    """List what the verdict on one comparison counts as."""
    record = judge(comparison).record
    assert record.leader is not None
    assert record.difference is not None
    said = []
    best = min(truth[one.name] for one in record.against if one.kind != record.baseline_kind)
    if record.reason == "decided":
        won = record.winner != record.baseline
        said.append("decided")
        if won and truth[record.leader] >= 0:
            said.append("rival")
        if not won and best <= 0:
            said.append("baseline")
    if record.difference.low <= truth[record.leader] <= record.difference.high:
        said.append("covered")
    return said
