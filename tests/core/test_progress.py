"""A task tells of its start, of how far it is, and of its end, once each and whatever happens in between."""

import pytest

from moekit.core.progress import Advanced, Finished, ProgressEvent, Started, Task


def test_events_of_a_task() -> None:
    told: list[ProgressEvent] = []
    with Task(told.append, "Loading", unit="bytes") as task:
        task.set(3, 10)
        task.advance(4, note="slowly")
    assert told == [
        Started(task="Loading", total=None, unit="bytes"),
        Advanced(task="Loading", done=3, total=10),
        Advanced(task="Loading", done=7, total=10, note="slowly"),
        Finished(task="Loading"),
    ]


def test_nothing_is_told_after_the_end() -> None:
    told: list[ProgressEvent] = []
    with Task(told.append, "Prompt", total=2, unit="tokens") as task:
        task.finish()
        task.advance(1)
        task.finish()
    assert told == [Started(task="Prompt", total=2, unit="tokens"), Finished(task="Prompt")]


def test_an_error_ends_a_task() -> None:
    told: list[ProgressEvent] = []
    with pytest.raises(KeyError), Task(told.append, "Prompt", total=2, unit="tokens"):
        raise KeyError
    assert told[-1] == Finished(task="Prompt")
