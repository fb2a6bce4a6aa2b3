"""The order of runs, and how long they take together."""

from itertools import pairwise

import pytest

from moekit.comparison.spec.run_order import PlannedRun, ordered_runs, seconds_together, williams_row


@pytest.mark.parametrize("count", [2, 4, 6, 8])
def test_a_williams_design_is_balanced(count: int) -> None:
    """Each treatment stands once in each place, and follows each other one once."""
    rows = [williams_row(count, row) for row in range(count)]
    for place in range(count):
        assert sorted(row[place] for row in rows) == list(range(count))
    neighbours = [pair for row in rows for pair in pairwise(row)]
    assert len(set(neighbours)) == len(neighbours) == count * (count - 1)


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_an_odd_number_has_every_place_once(count: int) -> None:
    rows = [williams_row(count, row) for row in range(count)]
    for place in range(count):
        assert sorted(row[place] for row in rows) == list(range(count))


def test_every_run_is_there_once_seed_by_seed() -> None:
    names = list("abcdefg")
    lengths = dict(zip(names, [3, 1, 2, 7, 5, 6, 4], strict=True))
    order = ordered_runs(names, [0, 1, 2], lengths)
    assert set(order) == {PlannedRun(name, seed) for name in names for seed in range(3)}
    assert [run.seed for run in order] == [0] * 7 + [1] * 7 + [2] * 7
    first, second, last = ([run.contestant for run in order[begin : begin + 7]] for begin in range(0, 21, 7))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert not {frozenset(pair) for pair in pairwise(first)} & {frozenset(pair) for pair in pairwise(second)}
    assert last == ["d", "f", "e", "g", "a", "c", "b"]


@pytest.mark.parametrize(
    ("runs", "lanes", "seconds"), [([3, 1, 2], 1, 6), ([3, 1, 2], 2, 3), ([1, 2, 3], 2, 4), ([5], 8, 5), ([], 2, 0)]
)
def test_the_time_of_all_is_when_the_last_lane_ends(runs: list[float], lanes: int, seconds: float) -> None:
    assert seconds_together(runs, lanes) == seconds
