"""What stands beside the bar while a model trains, and what is said for good."""

import pytest

from moekit.comparison.run.run_progress import RunProgress
from moekit.core.progress import Advanced, ProgressEvent, Task
from moekit.training import StepReport


class Hearing:
    """One run whose progress is kept."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []
        task = Task(self.events.append, "moe, seed 2", total=100, unit="steps")
        self.progress = RunProgress(task, "moe, seed 2", step_tokens=2048)

    @property
    def last(self) -> Advanced:
        """The latest of it."""
        assert isinstance(self.events[-1], Advanced)
        return self.events[-1]


@pytest.fixture
def hearing() -> Hearing:
    return Hearing()


def test_the_worst_layer_is_shown_beside_the_loss(hearing: Hearing) -> None:
    hearing.progress.step(StepReport(step=1, loss=3.21, seconds=1.0, load_max_over_mean=1.84, dead_experts=2))
    assert hearing.last == Advanced(task="moe, seed 2", done=1, total=100, note="loss 3.210 · load 1.8x, 2 dead")


def test_a_dense_model_shows_no_load(hearing: Hearing) -> None:
    hearing.progress.step(StepReport(step=1, loss=3.21, seconds=1.0))
    assert hearing.last.note == "loss 3.210"


def test_speed_counts_from_where_the_run_goes_on_and_the_held_out_figure_stays(hearing: Hearing) -> None:
    hearing.progress.step(StepReport(step=50, loss=3.0, seconds=10.0, bits_per_byte=2.5))
    hearing.progress.step(StepReport(step=60, loss=2.9, seconds=20.0))
    assert hearing.last.note == "loss 2.900 · held out 2.500 · 2.05 k tokens/s"


def test_a_warning_names_contestant_and_seed(hearing: Hearing, caplog: pytest.LogCaptureFixture) -> None:
    hearing.progress.step(
        StepReport(step=20, loss=3.2, seconds=1.0, warnings=["layer 2: 6 of 8 experts get no tokens"])
    )
    assert caplog.messages == ["  moe, seed 2: layer 2: 6 of 8 experts get no tokens"]
