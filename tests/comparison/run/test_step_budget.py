"""Steps and lanes from what contestants are measured to cost; nothing is measured here but told."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from moekit.comparison.run import side_by_side, step_budget
from moekit.comparison.run.lanes import Lane
from moekit.comparison.run.step_budget import (
    JOINING_STEPS,
    MINIMUM_STEPS,
    affordable_steps,
    leaves_room,
    run_seconds,
    unmeasured_lanes,
    within_budget,
)
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.run.worker_process import WorkerDied
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import MEASURED_SHARES, ComparisonPlan, PlannedLanes, new_plan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import Contestant, Size
from moekit.config import DenseConfig
from moekit.core import hardware
from moekit.core.errors import UsageError

TINY = Size(width=16, depth=2, heads=2, kv_heads=1, hidden=32, context=16, sequences=4)


def cost(step: float = 0.1, curve: float = 0.0, fixed: float = 0.0, memory: int = 1) -> Calibrated:
    return Calibrated(step_seconds=step, curve_seconds=curve, fixed_seconds=fixed, memory_bytes=memory)


def plan(
    required: Sequence[str], optional: Sequence[str] = (), *, budget: float = 1e5, seeds: int = 3
) -> ComparisonPlan:
    def contestants(names: Sequence[str]) -> list[Contestant]:
        return [Contestant(name=name, layers=(DenseConfig(width=32),)) for name in names]

    return new_plan(
        ComparisonRequest(
            contestants=contestants(required),
            optional=contestants(optional),
            baseline=required[0],
            size_name="tiny",
            size=TINY,
            seeds=seeds,
            command="",
            budget_seconds=1e5,
        )
    )


Told = Callable[[str, Lane, int], Calibrated | WorkerDied]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Told], list[tuple[int, list[str]]]]:
    """Put a machine with so many cores in this one's place, and a function that says what a contestant costs.

    What comes out gets the lanes and names of each measurement.
    """

    def tell(cores: int, costs: Told) -> list[tuple[int, list[str]]]:
        measured: list[tuple[int, list[str]]] = []

        def calibrate(
            folder: ComparisonFolder, names: Sequence[str], seed: int, lanes: Sequence[Lane]
        ) -> dict[str, Calibrated | WorkerDied]:
            measured.append((len(lanes), list(names)))
            return {name: costs(name, lanes[0], len(lanes)) for name in names}

        monkeypatch.setattr(side_by_side, "calibrate", calibrate)
        machine = replace(hardware.hardware(), cores=cores)
        monkeypatch.setattr(hardware, "hardware", lambda: machine)
        monkeypatch.setattr(step_budget, "lanes_here", lambda planned: [Lane(threads=planned.threads)] * planned.count)
        return measured

    return tell


def settle(asked: ComparisonPlan, seconds: float = 1e5) -> ComparisonPlan:
    return within_budget(asked, ComparisonFolder.__new__(ComparisonFolder), seconds)


def test_a_budget_is_spent_and_not_overspent() -> None:
    costs = {"a": cost(0.1, 0.5, 3), "b": cost(0.1, 0.5, 3)}
    steps = affordable_steps(costs, seeds=3, lanes=1, seconds=300)
    a_run = steps * 0.1 + len(MEASURED_SHARES) * 0.5 + 3
    assert run_seconds(costs["a"], steps) == pytest.approx(a_run)
    assert 0.9 * 300 < 6 * a_run <= 0.92 * 300


def test_lanes_give_as_many_times_the_steps_where_they_end_together() -> None:
    costs = {"a": cost(0.1), "b": cost(0.1)}
    alone = affordable_steps(costs, seeds=3, lanes=1, seconds=300)
    assert affordable_steps(costs, seeds=3, lanes=2, seconds=300) == pytest.approx(2 * alone, abs=2)
    # Six runs in four lanes: two rounds, as in three lanes.
    assert affordable_steps(costs, seeds=3, lanes=4, seconds=300) == pytest.approx(3 * alone, abs=3)
    # One run after another, however many lanes there are, takes the longest run at least.
    assert affordable_steps({"a": cost(1.0)}, seeds=1, lanes=64, seconds=1000) == 920


def test_an_impossible_budget_names_one_that_would_do() -> None:
    costs = {"a": cost(1.0)}
    with pytest.raises(UsageError, match=r"need at least 1 min 49 s; raise --budget"):
        affordable_steps(costs, seeds=1, lanes=1, seconds=30)
    assert affordable_steps(costs, seeds=1, lanes=1, seconds=108.8) == MINIMUM_STEPS


def test_there_is_room_where_every_run_gets_its_steps() -> None:
    costs = {"a": cost(0.1, fixed=5), "b": cost(0.1, fixed=5)}
    needed = 2 * 3 * (5 + 0.1 * JOINING_STEPS) / 0.92
    assert leaves_room(costs, seeds=3, lanes=1, seconds=needed + 0.01)
    assert not leaves_room(costs, seeds=3, lanes=1, seconds=needed - 1)
    assert affordable_steps(costs, seeds=3, lanes=1, seconds=needed + 0.01) == JOINING_STEPS


def test_the_first_of_the_optional_has_the_first_claim(told: Callable[..., list[tuple[int, list[str]]]]) -> None:
    """One that is too dear is left out, one that is cheaper is taken; without room nobody is measured."""
    seconds = {"dense": 1.0, "dear": 5.0, "cheap": 1.0, "late": 0.1}
    measured = told(1, lambda name, *_: cost(seconds[name]))

    def settled(budget: float) -> list[str]:
        measured.clear()
        asked = plan(["dense"], ["dear", "cheap", "late"], seeds=1)
        return [planned.name for planned in settle(asked, budget).contestants]

    assert settled(2.15 * JOINING_STEPS / 0.92) == ["dense", "cheap", "late"]
    assert measured == [(1, ["dense"]), (1, ["dear", "cheap", "late"])]
    assert settled(1.5 * MINIMUM_STEPS) == ["dense"]
    assert measured == [(1, ["dense"])]
    assert settled(8 * JOINING_STEPS) == ["dense", "dear", "cheap", "late"]


def test_lanes_are_those_in_which_all_runs_go_fastest(told: Callable[..., list[tuple[int, list[str]]]]) -> None:
    """With a second thread that gains a tenth, two lanes are taken; with one that gains nearly all, one lane."""
    names = ["a", "b", "c"]
    measured = told(2, lambda name, lane, _: cost(1.0 if lane.threads == 1 else 0.9))
    settled = settle(plan(names))
    assert settled.lanes == PlannedLanes(count=2, threads=1)
    assert measured == [(2, names), (1, ["b", "c"])]  # the second lanes are tried on two, and lose
    assert all(planned.run_seconds for planned in settled.contestants)

    measured = told(2, lambda name, lane, _: cost(1.0 if lane.threads == 1 else 0.4))
    settled = settle(plan(names))
    assert settled.lanes == PlannedLanes(count=1, threads=2)
    assert measured == [(2, names), (1, ["b", "c"]), (1, ["a"])]
    assert {planned.run_seconds for planned in settled.contestants} == {settled.training.steps * 0.4}


def test_lanes_that_stand_empty_count_for_nothing(told: Callable[..., list[tuple[int, list[str]]]]) -> None:
    """Nine runs in eight lanes take two rounds; in four lanes of two threads three, which are shorter."""
    told(8, lambda name, lane, _: cost({1: 1.0, 2: 0.6, 4: 0.5, 8: 0.5}[lane.threads or 0]))
    assert settle(plan(["a", "b", "c"])).lanes == PlannedLanes(count=4, threads=2)


def test_lanes_fit_into_memory(told: Callable[..., list[tuple[int, list[str]]]]) -> None:
    measured = told(2, lambda name, lane, _: cost(memory=1 << 60))
    assert settle(plan(["a", "b"])).lanes == PlannedLanes(count=1, threads=2)
    assert measured == [(2, ["a", "b"]), (1, ["a", "b"])]


def test_lanes_that_memory_will_not_hold_are_not_tried(
    told: Callable[..., list[tuple[int, list[str]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring in them could kill what is measured."""
    monkeypatch.setattr(step_budget, "memory_estimate", lambda planned, training: 1 << 60)
    measured = told(2, lambda name, lane, _: cost())
    assert settle(plan(["a", "b"])).lanes == PlannedLanes(count=1, threads=2)
    assert measured == [(1, ["a", "b"])]


def test_a_contestant_that_cannot_be_tried_is_kept_and_fails_in_its_run(
    told: Callable[..., list[tuple[int, list[str]]]],
) -> None:
    told(2, lambda name, *_: WorkerDied("out of luck") if name == "b" else cost())
    settled = settle(plan(["a", "b"]))
    assert [planned.run_seconds is None for planned in settled.contestants] == [False, True]
    told(2, lambda name, *_: WorkerDied("out of luck"))
    with pytest.raises(UsageError, match="could take a single step"):
        settle(plan(["a", "b"]))


def test_without_a_budget_lanes_are_as_many_as_there_are_cores_or_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(hardware.hardware(), cores=4)
    monkeypatch.setattr(hardware, "hardware", lambda: machine)
    monkeypatch.setattr(step_budget, "fits_in_memory", lambda lanes, memory: lanes <= 4)
    assert unmeasured_lanes(plan(["a", "b"])) == PlannedLanes(count=4, threads=1)
    assert unmeasured_lanes(plan(["a", "b"], seeds=1)) == PlannedLanes(count=2, threads=2)
    monkeypatch.setattr(step_budget, "fits_in_memory", lambda lanes, memory: lanes <= 2)
    assert unmeasured_lanes(plan(["a", "b"])) == PlannedLanes(count=2, threads=2)
    monkeypatch.setattr(step_budget, "fits_in_memory", lambda lanes, memory: False)
    assert unmeasured_lanes(plan(["a", "b"])) == PlannedLanes(count=1, threads=4)
