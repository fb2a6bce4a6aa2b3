"""Intervals hold the truth as often as they say, over simulated ladders of many truths.

In CI a few worlds a kind; MOEKIT_LADDER_WORLDS=100 runs it whole (half an hour).
"""

import os

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
@pytest.mark.parametrize("kind", KINDS)
def test_eighty_per_cent_intervals_hold_four_truths_of_five(kind: str) -> None:
    inside: list[bool] = []
    covered: list[np.ndarray] = []
    for world_seed in range(WORLDS):
        generator = np.random.default_rng(world_seed)
        world = drawn_world(generator, **KINDS[kind])
        runs = drawn_runs(world, generator)
        whole = fit_ladder(runs, generator, draws=DRAWS)
        strayed = held_out(whole, generator, draws=DRAWS)
        inside += [one.inside for one in strayed.predictions]
        flops = runs.flops_rc[-1, 0] * 10.0 ** np.arange(4)
        for one in range(1, len(runs.names)):
            drawn = np.concatenate(log_leverage(whole, one, flops))
            drawn = drawn + generator.normal(size=(len(drawn), 1)) * strayed.drift * np.arange(4)
            low, high = np.percentile(drawn, (10, 90), axis=0)
            truth = np.array([world.log_leverage(one, at) for at in flops])
            covered.append((low <= truth) & (truth <= high))
    share, by_decade = np.mean(inside), np.mean(covered, axis=0)
    found = f"held-out rungs {share:.2f}, leverage {np.round(by_decade, 2)}"
    # Contestants of a world share its noise, so a few worlds say little: bounds widen with their number's root.
    slack = 0.9 / np.sqrt(WORLDS)
    assert 0.80 - 0.08 - slack < share < 0.80 + 0.12 + slack, found
    assert np.all(by_decade > 0.80 - 0.10 - slack), found
    assert np.all(by_decade < 0.80 + 0.17 + slack), found
