"""`moekit upcycle` and `moekit split` as a user meets them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.convert.dense_models import save

from moekit.cli.split import split
from moekit.cli.upcycle import upcycle
from moekit.core.errors import MoekitError, UsageError


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("dense"), "llama")


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]


def test_upcycle_says_what_it_did(dense: Path, tmp_path: Path) -> None:
    shown = run(upcycle, dense, "--experts", 4, "--out", tmp_path / "out")
    assert shown.exit_code == 0
    assert "mixtral" in shown.stdout
    assert "The same function" in shown.stdout
    again = run(upcycle, dense, "--experts", 4, "--out", tmp_path / "out")
    assert isinstance(again.exception, UsageError)
    assert "exists already" in str(again.exception)


def test_what_is_not_the_same_says_why(dense: Path, tmp_path: Path) -> None:
    shown = run(upcycle, dense, "--experts", 4, "--method", "drop", "--out", tmp_path / "out")
    assert shown.exit_code == 0
    assert "Logits differ by up to" in shown.stdout
    assert "drop changes the experts" in shown.stdout


def test_json_and_dry_run(dense: Path, tmp_path: Path) -> None:
    common = [dense, "--layers", "1", "--granularity", 2, "--json", "--out", tmp_path / "out"]
    planned = json.loads(run(upcycle, *common, "--dry-run").stdout)
    assert planned.keys() >= {"output_bytes", "peak_memory_bytes", "tensors", "problems"}
    assert planned["problems"] == []
    assert not list(tmp_path.iterdir())
    report = json.loads(run(upcycle, *common).stdout)
    assert report["output_bytes"] == planned["output_bytes"]
    assert report["exact"] is True
    taken = run(upcycle, *common, "--dry-run")
    assert taken.exit_code == 2
    assert "exists already" in json.loads(taken.stdout)["problems"][0]
    wrong = run(upcycle, dense, "--granularity", 5, "--json", "--dry-run", "--out", tmp_path / "new")
    assert wrong.exit_code == 2
    assert "granularity 5" in json.loads(wrong.stdout)["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0-1,x"], "neither every nor alternate"),
        (["--layers", "3-1"], "neither every nor alternate"),
        (["--top-k", "0"], "--top-k"),
        (["--method", "merge"], "--method"),
    ],
)
def test_bad_arguments(dense: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    shown = run(upcycle, dense, "--out", tmp_path / "out", *arguments)
    assert shown.exit_code == 2
    assert message in shown.stderr


def test_arguments_that_contradict_each_other(dense: Path, tmp_path: Path) -> None:
    shown = run(upcycle, dense, "--out", tmp_path / "out", "--top-k", 9)
    assert isinstance(shown.exception, UsageError)
    assert str(shown.exception) == "moekit upcycle: top_k (9) is larger than the 8 experts there are."


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    shown = run(upcycle, tmp_path / "nowhere", "--out", tmp_path / "out")
    assert isinstance(shown.exception, MoekitError)
    assert "nowhere" in str(shown.exception)


@pytest.mark.parametrize("method", ["random", "clustered"])
def test_split(dense: Path, tmp_path: Path, method: str) -> None:
    common = [dense, "--experts", 4, "--top-k", 4, "--method", method, "--json", "--out", tmp_path / "out"]
    planned = json.loads(run(split, *common, "--dry-run").stdout)
    report = json.loads(run(split, *common).stdout)
    assert report["exact"] is True
    assert report["output_bytes"] == planned["output_bytes"]


def test_help_has_examples() -> None:
    for command in (upcycle, split):
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert "Examples:" in shown.stdout
