"""Lanes: how cores are cut, and what becomes of a plan on a machine with fewer of them."""

import os
from dataclasses import replace

import psutil
import pytest

from moekit.comparison.run.lanes import (
    Lane,
    fits_in_memory,
    has_room_for,
    lanes_here,
    memory_estimate,
    possible_lanes,
)
from moekit.comparison.spec.comparison_plan import PlannedLanes, new_plan
from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import SIZES, default_contestants
from moekit.core import hardware


@pytest.mark.parametrize(
    ("cores", "runs", "lanes"),
    [
        (1, 24, [(1, 1)]),
        (2, 24, [(2, 1), (1, 2)]),
        (2, 1, [(1, 2)]),
        (3, 24, [(3, 1), (1, 3)]),
        (6, 24, [(6, 1), (3, 2), (1, 6)]),
        (64, 24, [(24, 2), (16, 4), (8, 8), (4, 16), (2, 32), (1, 64)]),
    ],
)
def test_cores_are_cut_into_lanes(cores: int, runs: int, lanes: list[tuple[int, int]]) -> None:
    assert possible_lanes(cores, runs) == [PlannedLanes(count=count, threads=threads) for count, threads in lanes]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not held to cores here")
def test_each_lane_has_cores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {8, 9, 10, 11, 13})
    assert lanes_here(PlannedLanes(count=2, threads=2)) == [Lane((8, 9), 2), Lane((10, 11), 2)]
    assert lanes_here(PlannedLanes(count=3, threads=1)) == [Lane((8,), 1), Lane((9,), 1), Lane((10,), 1)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not held to cores here")
def test_with_fewer_cores_there_are_fewer_lanes_of_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6})
    planned = PlannedLanes(count=4, threads=2)
    assert not has_room_for(planned)
    assert lanes_here(planned) == [Lane((4, 5), 2)]
    assert lanes_here(PlannedLanes(count=2, threads=4)) == [Lane((), 4)]  # four threads share three cores
    assert has_room_for(PlannedLanes(count=3, threads=1))


def test_plans_of_before_have_the_one_lane_that_torch_chooses_threads_for() -> None:
    assert PlannedLanes() == PlannedLanes(count=1, threads=None)
    assert lanes_here(PlannedLanes()) == [Lane()]
    assert has_room_for(PlannedLanes())


def test_without_affinity_lanes_have_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(hardware.hardware(), cores=4)
    monkeypatch.setattr(hardware, "hardware", lambda: machine)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert lanes_here(PlannedLanes(count=2, threads=2)) == [Lane((), 2)] * 2


def test_the_largest_runs_must_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert fits_in_memory(2, [100, 500, 300])
    assert not fits_in_memory(3, [100, 500, 300])
    assert fits_in_memory(8, [100, 500, 200])


@pytest.mark.parametrize(("size_name", "least", "most"), [("xs", 0.48e9, 1e9), ("m", 1.26e9, 4e9)])
def test_memory_is_estimated_generously(size_name: str, least: float, most: float) -> None:
    """A process that takes a few steps of `dense` was seen to hold the least of these."""
    size = SIZES[size_name]
    dense = default_contestants(size)["dense"]
    plan = new_plan(
        ComparisonRequest(
            contestants=[dense], baseline="dense", size_name=size_name, size=size, seeds=1, command="", tokens=1
        )
    )
    assert least <= memory_estimate(plan.contestants[0], plan.training) <= most
