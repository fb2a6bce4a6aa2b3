"""What stands beside the bar while a model trains, and what is said for good."""

from io import StringIO

import pytest
from rich.console import Console

from moekit.cli.display import Display
from moekit.compare import experiment
from moekit.compare.spec.comparison_request import ComparisonRequest
from moekit.compare.spec.contestants import SIZES, default_contestants
from moekit.training import StepReport


@pytest.fixture
def display() -> Display:
    """A display in the middle of a run, its messages kept as text."""
    contestants = list(default_contestants(SIZES["xs"]).values())
    request = ComparisonRequest(
        contestants=contestants, baseline="dense", size_name="xs", size=SIZES["xs"], seeds=1, command="", tokens=100_000
    )
    made = Display()
    made.console = Console(file=StringIO(), width=200)
    made.planned(experiment.new_plan(request), 5)
    made.run_started("moe", 2)
    return made


def figures(display: Display) -> str:
    assert display.current is not None
    return str(next(task for task in display.progress.tasks if task.id == display.current).fields["figures"])


def test_the_worst_layer_is_shown_beside_the_loss(display: Display) -> None:
    display.step(StepReport(step=1, loss=3.21, seconds=1.0, load_max_over_mean=1.84, dead_experts=2))
    assert figures(display) == "loss 3.210 · load 1.8x, 2 dead"


def test_a_dense_model_shows_no_load(display: Display) -> None:
    display.step(StepReport(step=1, loss=3.21, seconds=1.0))
    assert figures(display) == "loss 3.210"


def test_a_warning_names_contestant_and_seed(display: Display) -> None:
    display.step(StepReport(step=20, loss=3.21, seconds=1.0, warnings=["layer 2: 6 of 8 experts get no tokens"]))
    assert "  moe, seed 2: layer 2: 6 of 8 experts get no tokens" in display.console.file.getvalue()  # type: ignore[attr-defined]
