"""Intervals hold the truth as often as they say, over simulated ladders of many truths.

In CI a few worlds a kind; MOEKIT_LADDER_WORLDS=100 runs it whole (half an hour).
"""

import os
import sys

import numpy as np
import pytest
from tests.comparison.ladder.sample_ladder import drawn_runs, drawn_world

from moekit.comparison.ladder.held_out_rungs import held_out
from moekit.comparison.ladder.ladder_fit import fit_ladder
from moekit.comparison.ladder.leverage import log_leverage

WORLDS = int(os.environ.get("MOEKIT_LADDER_WORLDS", "4"))
DRAWS = 60 if WORLDS > 20 else 24
# Truths that a form has; one that none has (its terms join more sharply); one whose exponent of size falls by a tenth
# in each decade; and one whose runs lie 0.3 % beside any law.
KINDS: dict[str, dict[str, float]] = {
    "as fitted": {},
    "another form": {"norm": 3},
    "bending": {"bend": 0.1},
    "rough": {"rough": 0.003},
}


@pytest.mark.slow
def test_eighty_per_cent_intervals_hold_four_truths_of_five() -> None:
    """Over all kinds together, and over each where there are worlds enough; `pytest -rP` shows the shares."""
    found = {kind: [_covered(kind, seed) for seed in range(WORLDS)] for kind in KINDS}
    _check("all", [one for worlds in found.values() for one in worlds])
    for kind, worlds in found.items():
        if WORLDS > 20:
            _check(kind, worlds)


def _covered(kind: str, seed: int) -> tuple[float, np.ndarray]:
    """In one world: the share of held-out predictions inside, and of leverage at the end and each decade on."""
    generator = np.random.default_rng(seed)
    world = drawn_world(generator, **KINDS[kind])
    runs = drawn_runs(world, generator)
    whole = fit_ladder(runs, generator, draws=DRAWS)
    strayed = held_out(whole, generator, draws=DRAWS)
    flops = runs.flops_rc[-1, 0] * 10.0 ** np.arange(4)
    covered = []
    for one in range(1, len(runs.names)):
        drawn = np.concatenate(log_leverage(whole, one, flops))
        drawn = drawn + generator.normal(size=(len(drawn), 1)) * strayed.drift * np.arange(4)
        low, high = np.percentile(drawn, (10, 90), axis=0)
        truth = np.array([world.log_leverage(one, at) for at in flops])
        covered.append((low <= truth) & (truth <= high))
    return float(np.mean([one.inside for one in strayed.predictions])), np.mean(covered, axis=0)


def _check(kind: str, worlds: list[tuple[float, np.ndarray]]) -> None:
    # Contestants of a world share its noise: a world counts as two or three, and shares of few scatter.
    slack = 0.5 / np.sqrt(len(worlds))
    share, by_decade = np.mean([inside for inside, _ in worlds]), np.mean([covered for _, covered in worlds], axis=0)
    found = f"{kind}: held-out rungs {share:.2f}, leverage at the end and each decade beyond {np.round(by_decade, 2)}"
    sys.stdout.write(f"{found}\n")
    assert 0.80 - 0.08 - slack < share < 0.80 + 0.12 + slack, found
    assert np.all(by_decade > 0.80 - 0.10 - slack), found
    assert np.all(by_decade < 0.80 + 0.17 + slack), found
