"""`moekit merge`: what it prints, how it exits, and that a dry run touches nothing."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.convert.merging.merge_recipes import make_models, recipe, write_recipe

from moekit.cli.merge import merge
from moekit.core.errors import MoekitError

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_models(tmp_path, count=2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(merge, [str(argument) for argument in arguments])


def test_a_dry_run_tells_exactly_what_comes(folder: Path) -> None:
    file, out = write_recipe(folder, recipe(folder)), folder / "out"
    begin = time.monotonic()
    result = run(file, "--out", out, "--dry-run", "--json")
    assert time.monotonic() - begin < 5
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["problems"] == []
    assert found["peak_memory_bytes"] > 0
    assert not out.exists()
    assert not list(folder.glob("*partial*"))
    result = run(file, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["architecture"] == "Mixtral"
    assert found["output_bytes"] == (out / "model.safetensors").stat().st_size


def test_a_dry_run_as_a_process(folder: Path) -> None:
    """Under 5 s of a processor, imports included; torch's compiler, which takes half of them to load, stays away."""
    file = write_recipe(folder, recipe(folder, gate_mode="router_input"))
    code = (
        "import sys; from moekit.cli.merge import merge; merge(sys.argv[1:], standalone_mode=False); "
        "print(sorted({'torch._dynamo', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(file), "--out", str(folder / "out"), "--dry-run"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_a_dry_run_counts_the_routers_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moekit.convert.merging.merge_conversion.training_memory_bytes", lambda merge: 10**12)
    file, needed = write_recipe(folder, recipe(folder)), []
    for more in ([], ["--train-router", "text.txt"]):
        found = json.loads(run(file, "--out", folder / "out", "--dry-run", "--json", *more).stdout)
        needed.append(found["peak_memory_bytes"])
    assert needed[0] < 10**12 == needed[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gate_mode": "hiden"}, ("gate_mode", "'hidden'")),
        ({"experts_per_token": 9}, ("experts_per_token",)),
        ({"base_model": "/nowhere"}, ("base_model", "/nowhere")),
    ],
)
def test_a_dry_run_lists_problems_and_exits_with_2(
    folder: Path, changes: dict[str, Any], named: tuple[str, ...]
) -> None:
    file = write_recipe(folder, recipe(folder, **changes))
    result = run(file, "--out", folder / "out", "--dry-run", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["output_bytes"] is None
    assert all(part in found["problems"][0] for part in named)
    result = run(file, "--out", folder / "out")
    assert isinstance(result.exception, MoekitError)
    assert result.exception.exit_status == 2
    assert not (folder / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    result = run(write_recipe(folder, recipe(folder)), "--out", folder / "e0", "--dry-run", "--json")
    assert result.exit_code == 2
    assert str(folder / "e0") in json.loads(result.stdout)["problems"][0]


def test_training_routers_with_text_held_out(folder: Path) -> None:
    (folder / "text.txt").write_text("def f(x): return x\n" * 30)
    (folder / "held.txt").write_text("import os\n" * 3)
    arguments = ["--train-router", folder / "text.txt", "--train-steps", 3, "--held-out", folder / "held.txt", "--json"]
    result = run(write_recipe(folder, recipe(folder)), "--out", folder / "out", "--seed", 4, *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["router_training"]["tensors_unchanged"] > 10
    report = json.loads((folder / "out" / "report.json").read_text())
    assert any(text["group"].startswith("held out") for text in report["texts"])
    card = (folder / "out" / "README.md").read_text()
    assert "3 steps of training" in card
    assert "seed 4" in card


def test_no_report(folder: Path) -> None:
    result = run(write_recipe(folder, recipe(folder)), "--out", folder / "out", "--no-report")
    assert result.exit_code == 0, result.output
    assert not (folder / "out" / "report.json").exists()
    assert "Mixtral of 2 experts" in result.stdout
