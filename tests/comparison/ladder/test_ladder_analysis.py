"""What a ladder of known laws comes to, how it is told, and that it says nothing where it knows nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
from tests.comparison.ladder.sample_ladder import fixed_world, sample_ladder, without

from moekit.comparison.ladder.ladder_analysis import analyse
from moekit.comparison.ladder.ladder_answer import at_decade
from moekit.comparison.ladder.ladder_runs import ladder_runs
from moekit.comparison.ladder.ladder_schema import LadderResults, read_ladder, write_ladder
from moekit.comparison.ladder.target_scale import parse_scale
from moekit.comparison.results_schema import Results
from moekit.core.errors import MoekitError

FOLDERS = ["rung-1", "rung-2", "rung-3", "rung-4"]
DRAWS = 30


def told(rungs: list[Results], at: str | None = None) -> LadderResults:
    return analyse(rungs, FOLDERS[: len(rungs)], target=parse_scale(at) if at else None, draws=DRAWS)


@pytest.fixture(scope="module")
def ladder() -> LadderResults:
    return told(sample_ladder(), at="2e15")


def test_leverage_is_what_the_truth_has(ladder: LadderResults) -> None:
    """Within a tenth at the ladder's end; three decades beyond it the interval holds it, and is wider."""
    world = fixed_world()
    for index, one in enumerate(ladder.contestants):
        if not one.leverage:
            assert one.name == ladder.baseline
            continue
        end, beyond = at_decade(one, 0), at_decade(one, 3)
        assert math.log(end.leverage) == pytest.approx(world.log_leverage(index, end.flops), abs=0.1)
        assert math.log(beyond.low) - 0.1 < world.log_leverage(index, beyond.flops) < math.log(beyond.high) + 0.1
        assert beyond.high / beyond.low > end.high / end.low
        assert beyond.flops == pytest.approx(1000 * ladder.rungs[-1].flops)
        assert one.leverage[-1] == beyond


def test_intervals_say_what_they_are_made_of(ladder: LadderResults) -> None:
    for one in ladder.contestants:
        for point in one.leverage:
            assert 0 < point.from_seeds <= 1.5 * point.from_fit
            assert point.from_held_out == pytest.approx(ladder.held_out.drift_per_decade * point.decades_beyond)  # type: ignore[union-attr]
            assert point.low < point.leverage < point.high


def test_the_largest_rung_is_predicted_from_the_smaller_ones(ladder: LadderResults) -> None:
    """Its results have no part in it: changing them moves what was got, and nothing that was predicted."""
    assert ladder.held_out is not None
    assert [one.contestant for one in ladder.held_out.predictions] == [one.name for one in ladder.contestants]
    assert ladder.held_out.inside == sum(one.low <= one.got <= one.high for one in ladder.held_out.predictions)
    rungs = sample_ladder()
    runs = ladder_runs(rungs)
    worse = [*rungs[:-1], _scaled(rungs[-1], 1.2)]
    other = told(worse).held_out
    assert other is not None
    assert other.inside == 0
    for one, moved in zip(ladder.held_out.predictions, other.predictions, strict=True):
        assert moved.got == pytest.approx(1.2 * one.got)
        assert moved.predicted == pytest.approx(one.predicted, rel=3e-3)
    assert runs.bits_rcp[-1, 0, -1] == pytest.approx(ladder.held_out.predictions[0].got)


def test_intervals_grow_where_held_out_rungs_strayed() -> None:
    """One contestant's last rung is far better than its smaller ones said: leverage strayed, and so it may beyond."""
    rungs = sample_ladder()
    straying = [*rungs[:-1], _scaled(rungs[-1], 0.97, only="moe")]
    calm, strayed = told(rungs), told(straying)
    assert calm.held_out is not None
    assert strayed.held_out is not None
    assert strayed.held_out.drift_per_decade > calm.held_out.drift_per_decade + 0.05

    def width(results: LadderResults) -> float:
        far = at_decade(next(one for one in results.contestants if one.name == "hybrid"), 3)
        return math.log(far.high / far.low)

    assert width(strayed) > 1.2 * width(calm)


def test_order_at_each_rung_is_held_against_the_largest(ladder: LadderResults) -> None:
    last = ladder.rungs[-1]
    assert last.order[0] == "moe-many"
    assert last.pairs == 10
    assert last.pairs_in_order == 10
    assert last.order_kept == 1
    assert all(0 <= rung.order_kept <= 1 and rung.pairs_in_order <= 10 for rung in ladder.rungs)


def test_beyond_three_decades_only_published_laws_speak(ladder: LadderResults) -> None:
    assert ladder.at is not None
    assert ladder.at.by == "ladder"
    assert set(ladder.at.leverage) == {"moe", "moe-fine", "hybrid", "moe-many"}
    assert "decades beyond the ladder" in ladder.at.sentences[0]
    far = told(sample_ladder(), at="70b").at
    assert far is not None
    assert far.by == "published laws"
    assert far.leverage == {}
    assert "says nothing" in far.sentences[0]
    assert "20 tokens a parameter" in far.sentences[0]
    assert any(figure.leverage and figure.leverage > 1 for figure in far.published)
    assert max(point.flops for one in ladder.contestants for point in one.leverage) < 1.001e3 * ladder.rungs[-1].flops


def test_published_laws_stand_at_the_end_beyond_and_at_1e21(ladder: LadderResults) -> None:
    end = ladder.rungs[-1].flops
    for flops in (end, 10 * end, 100 * end, 1000 * end, 1e21):
        there = [one for one in ladder.published if one.flops == pytest.approx(flops)]
        assert {one.contestant for one in there} == {"moe", "moe-fine", "hybrid", "moe-many"}
        assert not any(one.within_its_range for one in there) or flops > 1e17


def test_it_is_the_same_every_time(ladder: LadderResults) -> None:
    assert told(sample_ladder(), at="2e15") == ladder


def test_it_is_written_and_read(ladder: LadderResults, tmp_path: Path) -> None:
    write_ladder(ladder, tmp_path / "ladder.json")
    assert read_ladder(tmp_path / "ladder.json") == ladder


def test_two_rungs_hold_nothing_out() -> None:
    two = told(sample_ladder(rungs=2))
    assert two.held_out is None
    assert "was not tested" in two.sentences[1]
    with pytest.raises(MoekitError, match="two rungs"):
        told(sample_ladder(rungs=1))


def test_a_rung_without_a_contestant() -> None:
    """Who failed at a rung is neither predicted there nor in its order, and still has laws from the others."""
    rungs = sample_ladder()
    results = told([*rungs[:-1], without(rungs[-1], "moe")])
    assert results.held_out is not None
    assert "moe" not in [one.contestant for one in results.held_out.predictions]
    assert "moe" not in results.rungs[-1].order
    assert next(one for one in results.contestants if one.name == "moe").leverage
    with pytest.raises(MoekitError, match="baseline"):
        told([*rungs[:-1], without(rungs[-1], "dense")])


def test_noise_is_measured_between_seeds_or_assumed() -> None:
    """The sample's runs scatter by 0.44 % of the loss; one seed says nothing of it, and intervals are no narrower."""
    many, one = ladder_runs(sample_ladder(seeds=8)), told(sample_ladder(seeds=1))
    assert many.single_noise == pytest.approx(math.hypot(0.003, 0.003, 0.001), rel=0.25)
    assert one.noise_assumed
    assert one.noise > 0
    assert at_decade(one.contestants[1], 0).high > at_decade(one.contestants[1], 0).low


def test_the_first_steps_do_not_count() -> None:
    """Of a run of 400 steps the points before 150 are left out, of one of 12 all but the end."""
    for steps, points in ((1000, 8), (400, 6), (12, 1)):
        rungs = [_of_steps(rung, steps) for rung in sample_ladder(rungs=2)]
        assert np.isfinite(ladder_runs(rungs).bits_rcp[0, 0]).sum() == points
        assert [len(rung.curves["dense"]) for rung in told(rungs).rungs] == [points, points]


def test_seeds_are_drawn_for_all_contestants_together() -> None:
    """What a seed does to all of them does not widen their difference."""
    runs = ladder_runs(sample_ladder(seeds=6))
    drawn = np.array([runs.drawn_noise(np.random.default_rng(seed))[:, :, -1] for seed in range(400)])
    alone, apart = drawn[:, 0, 0].std(), (drawn[:, 0, 0] - drawn[:, 0, 1]).std()
    assert apart < 1.25 * alone  # independent ones would differ by 1.41 of it


def _scaled(results: Results, factor: float, only: str | None = None) -> Results:
    """The rung with bits per byte of all contestants, or of one, times a factor."""

    def scaled(one: object) -> object:
        return one.model_copy(update={"bits_per_byte": factor * one.bits_per_byte})  # type: ignore[attr-defined]

    return results.model_copy(
        update={
            "contestants": [
                one.model_copy(
                    update={
                        "runs": [run.model_copy(update={"curve": list(map(scaled, run.curve))}) for run in one.runs]
                    }
                )
                if only in (None, one.name)
                else one
                for one in results.contestants
            ]
        }
    )


def _of_steps(results: Results, steps: int) -> Results:
    """The rung, as if each of its runs had taken so many steps."""
    return results.model_copy(
        update={
            "contestants": [
                one.model_copy(
                    update={
                        "runs": [
                            run.model_copy(
                                update={
                                    "curve": [
                                        point.model_copy(update={"step": max(1, point.step * steps // 1000)})
                                        for point in run.curve
                                    ]
                                }
                            )
                            for run in one.runs
                        ]
                    }
                )
                for one in results.contestants
            ]
        }
    )
