"""`import moekit`: what it shows, what it costs, and that no room shadows a function."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys

import pytest

import moekit

VERBS = {
    "ask",
    "compare",
    "evaluate",
    "generate",
    "load",
    "load_runner",
    "merge",
    "plan",
    "quantize",
    "split",
    "train",
    "upcycle",
}
IMPORT = """
import sys, time
begin = time.perf_counter()
import moekit
seconds = time.perf_counter() - begin
import json
print(json.dumps([seconds, dir(moekit), sorted(sys.modules)]))
"""


def imported() -> tuple[float, list[str], list[str]]:
    """The seconds of the import, what `dir(moekit)` shows, and the modules there are then."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, env=environment)
    seconds, shown, modules = json.loads(done.stdout)
    return seconds, shown, modules


def test_the_verbs_are_shown_and_nothing_of_them_is_imported() -> None:
    _, shown, modules = imported()
    assert set(shown) >= VERBS
    of_verbs = [name for name in modules if name.partition(".")[0] in {"moekit", "torch", "numpy", "pydantic"}]
    assert of_verbs == ["moekit", "moekit.core", "moekit.core.version"]


@pytest.mark.alone
def test_the_import_is_quick() -> None:
    assert min(imported()[0] for _ in range(3)) < 0.15


def test_every_verb_is_a_function_of_its_own_name() -> None:
    assert set(moekit.__all__) == VERBS
    for name in moekit.__all__:
        function = getattr(moekit, name)
        assert (function.__name__, type(function).__name__) == (name, "function")


def test_no_room_takes_the_name_of_a_function() -> None:
    """Importing a room sets an attribute of `moekit`, which would be found before the function."""
    rooms = [room.name for room in pkgutil.iter_modules(moekit.__path__)]
    for room in rooms:
        importlib.import_module(f"moekit.{room}")
    assert VERBS.isdisjoint(rooms)
    assert all(callable(getattr(moekit, name)) for name in VERBS)


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'moekit' has no attribute 'nothing'"):
        _ = moekit.nothing  # type: ignore[attr-defined]


TYPED = """
from moekit import evaluate, generate, load_runner, plan, train
from moekit.evaluation import Evaluation
from moekit.inference import Completion, LoadedModel

one: Completion = generate("model", "text")
several: list[Completion] = generate("model", ["text"])
runner: LoadedModel = load_runner("model")
measured: Evaluation = evaluate("model")
reveal_type(plan("model"))
train("job.yaml", 3)
"""


@pytest.mark.slow
def test_arguments_and_results_are_typed(tmp_path: object) -> None:
    """As mypy sees them from outside: the package says that it is typed, and the imports are there for it."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent", "-c", TYPED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=str(tmp_path))
    lines = done.stdout.splitlines()
    assert 'Revealed type is "moekit.planning.describe.ModelPlan"' in lines[0]
    assert 'Argument 2 to "train" has incompatible type "int"' in lines[1]
    assert lines[2] == "Found 1 error in 1 file (checked 1 source file)"
