"""A worker and the process that reads it: messages are a typed union, and nothing else gets between them."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from moekit.comparison.results_schema import Run
from moekit.comparison.run import side_by_side, worker_process
from moekit.comparison.run.lanes import Lane
from moekit.comparison.run.worker import main
from moekit.comparison.run.worker_messages import Calibrated, StepTaken, Stopped, read_message, write_message
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.run_order import PlannedRun
from moekit.core.errors import MoekitError
from moekit.training import Interrupted, StepReport

MESSAGES = [
    StepTaken(report=StepReport(step=3, loss=2.5, seconds=0.1, warnings=["layer 0: all to one expert"])),
    Calibrated(step_seconds=0.1, curve_seconds=0.2, fixed_seconds=3.0, memory_bytes=1 << 30),
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
    """Let this Python code run in place of a worker; `sys.argv` holds what the worker would get."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        worker_process.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-c", f"import sys\n{code}", *command[3:]], **options),
    )


def train(folder: Path, *contestants: str, lanes: int = 1) -> dict[str, Run]:
    """Train these, one seed each; gives what came of them, with the steps that were told of as their tokens."""
    found: dict[str, Run] = {}
    told: dict[str, list[StepReport]] = {name: [] for name in contestants}
    side_by_side.train(
        ComparisonFolder(folder),
        [PlannedRun(name, 0) for name in contestants],
        [Lane()] * lanes,
        on_start=lambda run: told[run.contestant].append,
        on_end=lambda run, ended: found.update(
            {run.contestant: ended.model_copy(update={"tokens": len(told[run.contestant])})}
        ),
    )
    return found


@pytest.mark.parametrize(("status", "kind"), [(1, MoekitError), (Interrupted.exit_status, Interrupted)])
def test_a_stop_is_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[MoekitError]
) -> None:
    told = write_message(Stopped(error="the disk is full", exit_status=status))
    fake_worker(monkeypatch, f"print({told!r}); raise SystemExit({status})")
    with pytest.raises(kind, match="the disk is full") as caught:
        train(tmp_path, "dense")
    assert type(caught.value) is kind


def test_a_worker_that_breaks_off_in_a_line_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_message(MESSAGES[0])
    fake_worker(monkeypatch, f"print({first!r}); sys.stdout.write({first[:9]!r}); sys.exit('out of luck')")
    run = train(tmp_path, "dense")["dense"]
    assert (run.status, run.failure) == ("failed", "it ended with status 1: out of luck")
    assert run.tokens == 1


_TRAINS = """
import os, pathlib, signal, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def stopped(number, frame):
    (folder / f'{name}-saved').touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped)
(folder / f'{name}-began').touch()
while name != 'full' and not (folder / 'enough').exists():
    time.sleep(0.01)
while not (folder / 'other-began').exists():
    time.sleep(0.01)
"""


def test_runs_go_side_by_side_and_one_that_dies_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other's start; the third takes the lane of the one that is free."""
    result = Run(seed=0, status="done").model_dump_json()
    fake_worker(
        monkeypatch,
        "import os, pathlib, time\n"
        "place = pathlib.Path(sys.argv[1]) / sys.argv[2] / 'seed-0'\n"
        "(place / 'began').touch()\n"
        "partner = {'a': 'b', 'b': 'a', 'c': 'b'}[sys.argv[2]]\n"
        "while not (place.parents[1] / partner / 'seed-0/began').exists(): time.sleep(0.01)\n"
        "if sys.argv[2] == 'b': os.kill(os.getpid(), 9)\n"
        f"(place / 'result.json').write_text({result!r})",
    )
    found = train(tmp_path, "a", "b", "c", lanes=2)
    assert {name: run.status for name, run in found.items()} == {"a": "done", "b": "failed", "c": "done"}
    assert "ran out of memory" in (found["b"].failure or "")


def test_what_concerns_all_runs_lets_the_others_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = write_message(Stopped(error="the disk is full", exit_status=1))
    fake_worker(monkeypatch, f"{_TRAINS}\nprint({told!r}); sys.exit(1)")
    with pytest.raises(MoekitError, match="the disk is full"):
        train(tmp_path, "full", "other", "third", lanes=2)
    assert (tmp_path / "other-saved").exists()
    assert not (tmp_path / "third-began").exists()


def test_a_stop_lets_all_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does, while both lanes train."""
    first = write_message(MESSAGES[0])
    fake_worker(monkeypatch, _TRAINS.replace("while name", f"print({first!r}, flush=True)\nwhile name"))
    began: list[PlannedRun] = []

    def step(report: StepReport) -> None:
        while not all((tmp_path / f"{name}-began").exists() for name in ("slow", "other")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    def on_start(run: PlannedRun) -> Callable[[StepReport], None]:
        began.append(run)
        return step

    runs = [PlannedRun(name, 0) for name in ("slow", "other", "third")]
    with pytest.raises(Interrupted):
        side_by_side.train(
            ComparisonFolder(tmp_path), runs, [Lane()] * 2, on_start=on_start, on_end=lambda run, ended: None
        )
    assert (tmp_path / "slow-saved").exists()
    assert (tmp_path / "other-saved").exists()
    assert began == runs[:2]


def test_a_measurement_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(monkeypatch, "pass")
    found = side_by_side.calibrate(ComparisonFolder(tmp_path), ["dense"], 0, [Lane()])
    assert str(found["dense"]) == "it ended without a measurement"
    assert not ComparisonFolder(tmp_path).scratch.exists()


def test_all_are_measured_in_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in two lanes: who is measured goes on until both are, and beside the last one its like computes."""
    told = write_message(MESSAGES[1])
    fake_worker(
        monkeypatch,
        "import os, pathlib, time\n"
        "with (pathlib.Path(sys.argv[1]) / 'began').open('a') as log: log.write(sys.argv[2] + ' ')\n"
        f"time.sleep(0.5 * (sys.argv[2] != 'a')); print({told!r}, flush=True); time.sleep(60)",
    )
    began = time.monotonic()
    found = side_by_side.calibrate(ComparisonFolder(tmp_path), ["a", "b", "c"], 0, [Lane(), Lane()])
    assert time.monotonic() - began < 30
    assert found == dict.fromkeys("abc", MESSAGES[1])
    assert sorted((tmp_path / "began").read_text().split()) == ["a", "b", "c", "c"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not held to cores here")
def test_a_lane_has_its_cores_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is held to the lane's cores, and this process to what it had."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = os.sched_getaffinity(0)
    fake_worker(monkeypatch, "import os; sys.exit(f\"{os.sched_getaffinity(0)} {os.environ['OMP_NUM_THREADS']}\")")
    found: list[Run] = []
    for lane in (Lane((min(before),), 1), Lane()):
        side_by_side.train(
            ComparisonFolder(tmp_path), [PlannedRun("dense", 0)], [lane],
            on_start=lambda run: lambda report: None, on_end=lambda run, ended: found.append(ended),
        )  # fmt: skip
    assert os.sched_getaffinity(0) == before
    assert [run.failure for run in found] == [
        f"it ended with status 1: { ({min(before)}) } 1",
        f"it ended with status 1: {before} 5",
    ]


def test_a_worker_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """Its parent is killed while it computes and says nothing."""
    started = tmp_path / "worker"
    worker = (
        "import os, pathlib, time; from moekit.comparison.run.worker import end_with_parent; end_with_parent()\n"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "while True: sum(range(1000))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"]
    )
    deadline = time.monotonic() + 60
    while not started.exists() or not started.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while psutil.pid_exists(int(started.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
