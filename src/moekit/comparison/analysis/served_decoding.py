"""How fast contestants decode as they are served, against each other: ratios of times that were measured in turns.

A ratio is of one round, in which the two models had their turns within a second or so of each other; what the machine
did meanwhile is in both. Its interval says how well the rounds agree, and nothing of other machines.

S seeds, N rounds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults, Decode, Results
from moekit.comparison.verdict_schema import Interval
from moekit.config import ModelConfig

At = Literal["trained", "grown"]
AT: tuple[At, At] = ("trained", "grown")
"""The two sizes: that of the comparison, whose models are trained, and the one that no cache holds, of random weights.
"""

# Totals this near are one size.
_SAME_TOTAL = 0.05


@dataclass(frozen=True, kw_only=True)
class DecodeRatio:
    """The time of one contestant's token over that of another's, geometric mean over rounds.

    low, high: the 95 % interval over rounds, Student's t on logarithms: a bootstrap of so few would be too sure.
    """

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def interval(self) -> Interval:
        """The ends alone."""
        return Interval(low=self.low, high=self.high)


def decodes(contestant: ContestantResults, at: At) -> dict[int, Decode]:
    """Give what was measured of a contestant at one of the sizes: by seed, of which the larger size has one."""
    if at == "grown":
        return {} if contestant.served_size is None else {0: contestant.served_size.decode}
    return {run.seed: run.decode for run in contestant.runs if run.status == "done" and run.decode is not None}


def decode_ratio(contestant: ContestantResults, other: ContestantResults, at: At) -> DecodeRatio | None:
    """Give the ratio of the times of a token, over seeds that both finished; None where they had no turns together."""
    mine, theirs = decodes(contestant, at), decodes(other, at)
    return ratio_of([(mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())])


def ratio_of(pairs: Sequence[tuple[Decode, Decode]]) -> DecodeRatio | None:
    """Give the ratio of the times of a token within pairs, one a seed; None where they had no turns together."""
    logs_SN = [
        [math.log(np.median(a) / np.median(b)) for a, b in zip(mine.round_ms, theirs.round_ms, strict=True)]
        for mine, theirs in pairs
        if len(mine.round_ms) == len(theirs.round_ms)
    ]
    if not logs_SN or len(logs_SN[0]) < 2:
        return None
    found = Estimate.of(np.mean(logs_SN, axis=0).tolist())
    assert found is not None
    ratio, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return DecodeRatio(ratio=ratio, low=low, high=high, rounds=found.seeds)


def median_ms(contestant: ContestantResults, at: At) -> float | None:
    """Give the median time of a token in milliseconds."""
    return _over_tokens(contestant, at, lambda times: float(np.median(times)))


def joules_per_token(contestant: ContestantResults, at: At) -> float | None:
    """Give the joules of a token, mean over the models that were measured; None where the system told none of one."""
    found = [decode.joules_per_token for decode in decodes(contestant, at).values()]
    told = [one for one in found if one is not None]
    return float(np.mean(told)) if told and len(told) == len(found) else None


def token_spread(contestant: ContestantResults, at: At) -> float | None:
    """Give how far the slowest twentieth of the tokens lies above the median, p95 over it; each model by its own."""
    found = [
        float(np.quantile(times, 0.95) / np.median(times))
        for decode in decodes(contestant, at).values()
        if (times := [one for turn in decode.round_ms for one in turn])
    ]
    return float(np.mean(found)) if found else None


def same_total(results: Results, at: At) -> list[tuple[ContestantResults, ContestantResults]]:
    """Find the pairs of a mixture and a dense model of its total parameters, both of which were measured."""
    there = [one for one in results.contestants if decodes(one, at) and isinstance(one.config, ModelConfig)]
    return [
        (mixture, dense)
        for mixture in there
        for dense in there
        if _is_mixture(mixture)
        and not _is_mixture(dense)
        and abs(_total(dense, at) / _total(mixture, at) - 1) <= _SAME_TOTAL
    ]


def _over_tokens(contestant: ContestantResults, at: At, figure: Callable[[Sequence[float]], float]) -> float | None:
    times = [one for decode in decodes(contestant, at).values() for turn in decode.round_ms for one in turn]
    return figure(times) if times else None


def _is_mixture(contestant: ContestantResults) -> bool:
    assert isinstance(contestant.config, ModelConfig)
    return any(layer.kind == "moe" for layer in contestant.config.feed_forwards)


def _total(contestant: ContestantResults, at: At) -> int:
    size = contestant.served_size
    total = size.params_total if at == "grown" and size is not None else contestant.params_total
    assert total is not None  # a decoder's follows from its configuration
    return total
