"""The one display: what stands beside a bar, and that nothing of it stays."""

import logging
import sys
from io import StringIO

import pytest
from rich.console import Console

from moekit.cli import progress_display
from moekit.cli.message_log import show_messages
from moekit.cli.progress_display import ProgressDisplay
from moekit.core.progress import Task


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the display believes to be: the list's only entry."""
    now = [100.0]
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def display() -> ProgressDisplay:
    """A display on a terminal of 160 columns."""
    return ProgressDisplay(Console(file=StringIO(), force_terminal=True, width=160))


def shown(display: ProgressDisplay) -> list[tuple[str, str]]:
    """The names and figures of the bars that are there."""
    assert display._drawn is not None
    return [(task.description, task.fields["figures"]) for task in display._drawn.tasks]


def test_bytes_have_a_speed_and_the_time_left(display: ProgressDisplay, clock: list[float]) -> None:
    with Task(display, "Loading", unit="bytes") as task:
        assert shown(display) == [("Loading", "0 B")]
        task.set(0, 4_000_000_000)
        clock[0] += 2
        task.set(1_000_000_000)
        assert shown(display) == [("Loading", "1.00 GB of 4.00 GB · 500 MB/s · 6.0 s left")]


def test_what_is_gone_on_with_counts_from_where_it_was(display: ProgressDisplay, clock: list[float]) -> None:
    """A run that resumes at step 900 is no faster for it."""
    with Task(display, "dense, seed 0", total=1000, unit="steps") as task:
        task.set(900, note="loss 3.210")
        assert shown(display) == [("dense, seed 0", "900/1,000 · loss 3.210")]
        clock[0] += 20
        task.set(910, note="loss 3.200")
        assert shown(display) == [("dense, seed 0", "910/1,000 · 3 min 0 s left · loss 3.200")]


def test_tasks_within_a_task_and_nothing_when_all_have_ended(display: ProgressDisplay) -> None:
    with Task(display, "all runs", total=2, unit="runs") as runs:
        with Task(display, "[dense]", total=5, unit="steps"):
            assert [name for name, _ in shown(display)] == ["all runs", "[dense]"]
        runs.advance(1)
        assert shown(display)[0][0] == "all runs"
        assert len(shown(display)) == 1
    assert display._drawn is None
    with Task(display, "again", unit="steps"):
        assert [name for name, _ in shown(display)] == ["again"]


def test_a_narrow_terminal_cuts_the_note_off(clock: list[float]) -> None:
    """One line a task, with a bar; what is cut off is the end of the note."""
    terminal = StringIO()
    display = ProgressDisplay(Console(file=terminal, force_terminal=True, color_system=None, width=76))
    with Task(display, "dense, seed 0", total=1000, unit="steps") as task:
        task.set(0)
        clock[0] += 20
        task.set(100, note="loss 3.210 · held out 3.100 · load 1.8x, 2 dead · 4.59 k tokens/s")
        assert display._drawn is not None
        display._drawn.refresh()
    lines = [line for line in terminal.getvalue().replace("\r", "\n").splitlines() if "left" in line]
    assert lines
    for line in lines:
        assert "100/1,000 · 3 min 0 s left · loss" in line
        assert line.rstrip().endswith("…")
        assert line.removeprefix("\x1b[2K").index("100/1,000") == len("dense, seed 0 ") + 24 + 1


def test_no_bar_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Task(ProgressDisplay(), "Loading", unit="bytes") as task:
        task.set(5, 10)
    assert capsys.readouterr().err == ""


def test_messages_are_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages()
    show_messages()
    logging.getLogger("moekit.comparison").info("Training %d contestants", 8)
    logging.getLogger("moekit.comparison").debug("not for users")
    assert capsys.readouterr().err == "Training 8 contestants\n"


def test_messages_appear_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_messages()
    display = ProgressDisplay(Console(file=terminal, force_terminal=True, width=80))
    with Task(display, "all runs", total=2, unit="runs"):
        logging.getLogger("moekit.comparison").info("Training 8 contestants")
        written = terminal.getvalue()
    assert "Training 8 contestants" in written
    assert written.index("Training 8 contestants") < written.rindex("all runs")
