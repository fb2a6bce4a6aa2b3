"""Synthetic ladders: rungs whose losses follow known laws, with the noise that seeds have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from tests.comparison import sample_results

from moekit.comparison.ladder.ladder_runs import SHARES, LadderRuns
from moekit.comparison.results_schema import CurvePoint, Results, Run
from moekit.comparison.spec.comparison_plan import MEASURED_SHARES
from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig

TOKENS_PER_SIZE = 6.0
EXPANSION = (1.0, 4.0, 4.0, 2.5, 16.0)
MODELS = {
    "dense": [DenseConfig(width=512)],
    "moe": [MoEConfig(experts=8, expert_width=256, router=SoftmaxTopKConfig(top_k=2))],
    "moe-fine": [MoEConfig(experts=16, expert_width=128, router=SoftmaxTopKConfig(top_k=4))],
    "hybrid": [
        DenseConfig(width=512),
        MoEConfig(experts=16, expert_width=128, router=SoftmaxTopKConfig(top_k=3), branch="shared", branch_width=128),
    ],
    "moe-many": [MoEConfig(experts=64, expert_width=128, router=SoftmaxTopKConfig(top_k=4))],
}


@dataclass(frozen=True)
class World:
    """A truth: E, and of each contestant the levels and exponents of both terms; see `moekit…scaling_laws`.

    norm: 1 for Chinchilla's form. bend: by how much the exponent of size falls in each decade. rough: the standard
    deviation of a run around its law beyond chance.
    """

    floor: float
    level_2c: np.ndarray
    exponent_2c: np.ndarray
    norm: float = 1.0
    bend: float = 0.0
    rough: float = 0.001

    def bits(self, one: int, size: float, tokens: float) -> float:
        """The loss without noise."""
        x, y = np.log(size / 1e6), np.log(tokens / 6e6)
        bent = x - self.bend * x * abs(x) / (2 * np.log(10)) / (1 + self.bend * abs(x))
        terms = self.level_2c[:, one] * np.exp(-self.exponent_2c[:, one] * np.array([bent, y]))
        return float(self.floor + (terms**self.norm).sum() ** (1 / self.norm))

    def along(self, one: int, flops: float) -> float:
        """The loss by the ladder's rule."""
        size = np.sqrt(flops / (6 * TOKENS_PER_SIZE))
        return self.bits(one, size, TOKENS_PER_SIZE * size)

    def log_leverage(self, one: int, flops: float) -> float:
        """The truth that the ladder is after."""
        wanted = self.along(one, flops)
        return float(brentq(lambda more: self.along(0, flops * np.exp(more)) - wanted, -9, 12))


def drawn_world(
    generator: np.random.Generator, *, count: int = 5, norm: float = 1, bend: float = 0, rough: float = 0.001
) -> World:
    """A truth with exponents, floors and differences such as published laws have."""
    base_2 = generator.uniform(0.22, 0.45, 2)
    own_2c = np.exp(np.c_[np.zeros(2), generator.normal(0, 0.1, (2, count - 1))])
    level_2 = generator.uniform(0.5, 0.9, 2)
    better_2c = np.exp(np.c_[np.zeros(2), generator.normal([[-0.05], [-0.02]], 0.06, (2, count - 1))])
    return World(
        float(generator.uniform(0.5, 1.3)), level_2[:, None] * better_2c, base_2[:, None] * own_2c, norm, bend, rough
    )


def fixed_world() -> World:
    """A truth in which each mixture is better than the last, from 1.1 to about 2 times the baseline's FLOPs."""
    return World(
        floor=0.9,
        level_2c=np.array([[0.80, 0.77, 0.76, 0.78, 0.70], [0.70, 0.69, 0.69, 0.695, 0.67]]),
        exponent_2c=np.array([[0.34, 0.34, 0.345, 0.34, 0.35], [0.36, 0.36, 0.36, 0.36, 0.37]]),
    )


def sizes_of(rungs: int, span: float) -> np.ndarray:
    """N of each rung, so that FLOPs grow by `span` in all."""
    return np.asarray(0.3e6 * np.geomspace(1, np.sqrt(span), rungs))


def log_curves(
    world: World, size: float, generator: np.random.Generator, *, seeds: int, shares: Sequence[float]
) -> np.ndarray:
    """Logarithms of losses (seeds, contestants, shares): offsets of the seed and of the run, slopes, and jitter."""
    count = world.level_2c.shape[1]
    tokens = TOKENS_PER_SIZE * size
    true_cp = np.log([[world.bits(one, size, share * tokens) for share in shares] for one in range(count)])
    true_cp = true_cp + generator.normal(0, world.rough, (count, 1))
    shared_s = generator.normal(0, 0.003, (seeds, 1, 1))
    own = generator.normal(0, 0.003, (seeds, count, 1))
    slope = generator.normal(0, 0.002, (seeds, count, 1)) * np.log(shares)
    return np.asarray(true_cp + shared_s + own + slope + generator.normal(0, 0.001, (seeds, *true_cp.shape)))


def drawn_runs(
    world: World, generator: np.random.Generator, *, rungs: int = 4, seeds: int = 3, span: float = 40
) -> LadderRuns:
    """A ladder as arrays, without going through results."""
    sizes_r = sizes_of(rungs, span)
    curves = [log_curves(world, size, generator, seeds=seeds, shares=SHARES) for size in sizes_r]
    means_rcp = np.array([curve.mean(axis=0) for curve in curves])
    wider = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    scatter = [
        wider * (one - mean) for curve, mean in zip(curves, means_rcp, strict=True) for one in curve if seeds > 1
    ]
    count = means_rcp.shape[1]
    return LadderRuns(
        names=tuple(MODELS)[:count],
        baseline=0,
        expansion_c=np.array(EXPANSION[:count]),
        size_rc=np.repeat(sizes_r[:, None], count, axis=1),
        tokens_r=TOKENS_PER_SIZE * sizes_r,
        bits_rcp=np.exp(means_rcp),
        seeds_r=np.full(rungs, seeds),
        scatter_scp=np.array(scatter).reshape(-1, count, len(SHARES)),
    )


def sample_ladder(world: World | None = None, *, rungs: int = 4, seeds: int = 3, span: float = 40) -> list[Results]:
    """The results of a ladder, smallest rung first, as comparisons leave them."""
    generator = np.random.default_rng(3)
    return [
        _rung(world or fixed_world(), size, f"w{64 * 2**index}", seeds, generator)
        for index, size in enumerate(sizes_of(rungs, span))
    ]


def _rung(world: World, size: float, name: str, seeds: int, generator: np.random.Generator) -> Results:
    tokens = round(TOKENS_PER_SIZE * size)
    logs = log_curves(world, size, generator, seeds=seeds, shares=MEASURED_SHARES)
    contestants = []
    for one, (who, layers) in enumerate(MODELS.items()):
        runs = [_run(seed, np.exp(logs[seed, one]), tokens, 6 * size) for seed in range(seeds)]
        made = sample_results.contestant(
            who, sample_results.model(layers * 2), runs, total=round(size), active=round(size), flops=6 * size
        )
        contestants.append(made)
    made = sample_results.results(contestants, seeds=range(seeds), command="moekit compare --ladder")
    return made.model_copy(update={"settings": made.settings.model_copy(update={"size": name, "tokens": tokens})})


def _run(seed: int, bits_p: np.ndarray, tokens: int, flops: float) -> Run:
    curve = [
        CurvePoint(
            step=max(1, round(share * 1000)), tokens=round(share * tokens), flops=flops * share * tokens,
            seconds=share * 60, bits_per_byte=float(bits), train_loss=float(bits),
        )
        for share, bits in zip(MEASURED_SHARES, bits_p, strict=True)
    ]  # fmt: skip
    return Run(
        seed=seed, status="done", tokens=tokens, seconds=60, bits_per_byte=float(bits_p[-1]), curve=curve,
        peak_memory_bytes=1, train_tokens_per_second=tokens / 60, decode_ms=[1.0],
    )  # fmt: skip


def without(results: Results, name: str) -> Results:
    """The rung, in which all of a contestant's runs failed."""
    return results.model_copy(
        update={
            "contestants": [
                one.model_copy(update={"runs": [sample_results.failed_run(run.seed) for run in one.runs]})
                if one.name == name
                else one
                for one in results.contestants
            ]
        }
    )


def with_world(world: World, **changes: float) -> World:
    """The same truth, but for what is changed."""
    return replace(world, **changes)  # type: ignore[arg-type]
