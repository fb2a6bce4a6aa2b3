"""A worker and the process that reads it: messages are a typed union, and nothing else gets between them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from moekit.comparison.run import worker_process
from moekit.comparison.run.worker import main
from moekit.comparison.run.worker_messages import Calibrated, StepTaken, Stopped, read_message, write_message
from moekit.comparison.run.worker_process import WorkerDied
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.core.errors import MoekitError
from moekit.training import Interrupted, StepReport

MESSAGES = [
    StepTaken(report=StepReport(step=3, loss=2.5, seconds=0.1, warnings=["layer 0: all to one expert"])),
    Calibrated(step_seconds=0.1, curve_seconds=0.2, fixed_seconds=3.0),
    Stopped(error="No space left on device", exit_status=1),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_messages_are_a_line_each_way(message: StepTaken | Calibrated | Stopped) -> None:
    line = write_message(message)
    assert "\n" not in line
    assert json.loads(line)["type"] == message.type
    assert read_message(line) == message


@pytest.mark.parametrize("line", ["", "loading...", '{"step": 3, "loss": 2.5}', '{"type": "calibrated", "step": 1}'])
def test_what_is_no_message_is_an_error(line: str) -> None:
    with pytest.raises(ValidationError):
        read_message(line)


def test_what_concerns_all_runs_is_told(tmp_path: Path) -> None:
    output = io.StringIO()
    assert main([str(tmp_path), "dense", "0"], output) == 1
    message = read_message(output.getvalue())
    assert isinstance(message, Stopped)
    assert "holds no comparison" in message.error


def test_what_libraries_print_goes_to_the_log(tmp_path: Path) -> None:
    """From Python, and past Python straight to the file descriptor."""
    code = (
        "import os, runpy, sys, torch\n"
        "import moekit.comparison.spec.comparison_folder as there\n"
        "def noisy(self):\n"
        "    print('a library speaks', flush=True); os.write(1, b'and so does C\\n')\n"
        "    raise there.MoekitError('nothing there')\n"
        "there.ComparisonFolder.read_plan = noisy\n"
        "sys.argv = ['worker', sys.argv[1], 'dense', '0']\n"
        "runpy.run_module('moekit.comparison.run.worker', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert [read_message(line) for line in done.stdout.splitlines()] == [Stopped(error="nothing there", exit_status=1)]
    assert "a library speaks" in done.stderr
    assert "and so does C" in done.stderr


def fake_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let this Python code run in place of a worker."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        worker_process.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", code], **options)
    )


@pytest.mark.parametrize(("status", "kind"), [(1, MoekitError), (Interrupted.exit_status, Interrupted)])
def test_a_stop_is_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[MoekitError]
) -> None:
    told = write_message(Stopped(error="the disk is full", exit_status=status))
    fake_worker(monkeypatch, f"print({told!r}); raise SystemExit({status})")
    with pytest.raises(kind, match="the disk is full") as caught:
        worker_process.train(ComparisonFolder(tmp_path), "dense", 0, lambda report: None)
    assert type(caught.value) is kind


def test_a_worker_that_breaks_off_in_a_line_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_message(MESSAGES[0])
    fake_worker(monkeypatch, f"import sys; print({first!r}); sys.stdout.write({first[:9]!r}); sys.exit('out of luck')")
    steps: list[StepReport] = []
    run = worker_process.train(ComparisonFolder(tmp_path), "dense", 0, steps.append)
    assert (run.status, run.failure) == ("failed", "it ended with status 1: out of luck")
    assert [step.step for step in steps] == [3]


def test_a_measurement_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(monkeypatch, "pass")
    with pytest.raises(WorkerDied, match="without a measurement"):
        worker_process.calibrate(ComparisonFolder(tmp_path), "dense", 0)
