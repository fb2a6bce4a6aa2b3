"""What moekit 0.1.0 wrote before attention was said layer by layer is read today, and means the same.

`tests/fixtures/make_0_1_0.py` wrote the files, and beside them what that version computed from them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from moekit.cli import moekit
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.contestant_selection import read_contestants
from moekit.comparison.spec.contestants import Size
from moekit.models import load
from moekit.models.gguf import load_gguf
from moekit.training.job import AnyModelConfig, read_job

BEFORE = Path(__file__).parent / "fixtures" / "0.1.0"
EXPECTED: dict[str, Any] = json.loads((BEFORE / "expected.json").read_text())
TENSORS = load_file(BEFORE / "expected.safetensors")
TOKENS = torch.tensor(EXPECTED["tokens"])
MODELS: dict[str, Any] = json.loads((BEFORE / "models.json").read_text())
QUESTION = "What is the capital of France?"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files where they may be changed, and the working directory: their paths are relative to it."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(moekit, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def output(model: Any) -> Tensor:
    """What the forward pass gives: of TOKENS, or of the first row as source and the second as target."""
    with torch.no_grad():
        found = model(*TOKENS[:, None]) if hasattr(model.config, "target_vocab_size") else model(TOKENS)
    return found if isinstance(found, Tensor) else found[0]


def check_output(name: str, found: Tensor, tolerance: float = 1e-6) -> None:
    """Within `tolerance` of what was computed before, in its standard deviations."""
    expected = TENSORS[name]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.std()


@pytest.mark.parametrize("name", MODELS)
def test_folders(name: str) -> None:
    """Of moekit's own type and of the families that say the same."""
    model = load(BEFORE / "models" / name)
    assert model.config == TypeAdapter(AnyModelConfig).validate_python(MODELS[name])
    check_output(f"models/{name}", output(model), 5e-6)


@pytest.mark.parametrize("name", sorted(path.stem for path in (BEFORE / "gguf").iterdir()))
def test_gguf_files(name: str) -> None:
    check_output(f"gguf/{name}", output(load_gguf(BEFORE / "gguf" / f"{name}.gguf")), 5e-6)


@pytest.mark.parametrize("name", sorted(path.stem for path in (BEFORE / "training").glob("*.yaml")))
def test_trainings_go_on(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by that version, they end as if never stopped; a processor moves the last of their bits."""
    monkeypatch.chdir(copy / "training")
    assert read_job(Path(f"{name}.yaml"))
    if name == "ngram":
        found = load(Path("ngram/model.arpa")).log_prob(TOKENS + 64)  # type: ignore[union-attr]
        torch.testing.assert_close(found, TENSORS["training/ngram"])
        return
    result = json.loads(run("train", f"{name}.yaml", "--out", name, "--json"))
    assert result["held_out_bits"] == pytest.approx(EXPECTED[f"training/{name}"], rel=1e-4)
    check_output(f"training/{name}", output(load(Path(name) / "model")), 1e-3)


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on whether runs were stopped: all but times and memory."""
    return {
        each["name"]: [
            (run["status"], run["bits_per_byte"], [point["bits_per_byte"] for point in run["curve"]])
            for run in each["runs"]
        ]
        for each in results["contestants"]
    }


def test_a_comparison_goes_on(copy: Path) -> None:
    """In bf16, whose products are not rounded where that version rounded them: its figures are as far from fp32's."""
    found = figures(json.loads(run("compare", "--resume", "compare/stopped", "--json")))
    expected = figures(json.loads((BEFORE / "compare/finished/results.json").read_text()))
    assert found.keys() == expected.keys()
    for name, runs in expected.items():
        for (status, bits, curve), (before, bits_before, curve_before) in zip(found[name], runs, strict=True):
            assert status == before == "done"
            assert bits == pytest.approx(bits_before, rel=3e-4), name
            assert curve == pytest.approx(curve_before, rel=3e-4), name


def test_in_fp32_it_ends_where_that_version_ends(copy: Path) -> None:
    """What that version made of its stopped comparison once its plan said float32."""
    plan = copy / "compare/stopped/plan.json"
    plan.write_text(plan.read_text().replace('"precision": "bfloat16"', '"precision": "float32"'))
    found = figures(json.loads(run("compare", "--resume", "compare/stopped", "--json")))
    expected = json.loads((BEFORE / "compare/finished-float32.json").read_text())
    assert found.keys() == expected.keys()
    for name, before in expected.items():
        ((status, bits, curve),) = found[name]
        assert status == "done"
        assert bits == pytest.approx(before["bits_per_byte"], rel=1e-5), name
        assert curve == pytest.approx(before["curve"], rel=1e-5), name


@pytest.mark.parametrize("strategy", ["answer", "ranked", "routed", "samples"])
def test_answers_of_a_cache_are_replayed(strategy: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is made: nobody listens at the address that the configuration names."""
    monkeypatch.chdir(copy / "agents")
    said = json.loads(run("agents", "ask", "agents.yaml", QUESTION, "--strategy", strategy, "--replay", "--json"))
    expected = EXPECTED[f"agents/{strategy}"]
    assert said["answer"] == expected["answer"]
    assert said["failures"] == []


CONVERSIONS = {
    "merged": ["merge", "merge.yaml", "--seed", 3],
    "upcycled": ["upcycle", "dense", "--experts", 4, "--method", "noise"],
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_of_before_says_that_it_is_another(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan counts the place and date of its sources, which no copy keeps; begun anew, it writes the same weights."""
    monkeypatch.chdir(copy / "conversions")
    verb, *arguments = [str(part) for part in CONVERSIONS[name]]
    stopped = CliRunner().invoke(moekit, [verb, *arguments, "--out", name])
    assert f"{name}.partial holds the beginning of another result" in str(stopped.exception)
    shutil.rmtree(f"{name}.partial")
    run(verb, *arguments, "--out", name)
    sums = json.loads(Path(name, "checksums.json").read_text())
    weights = "model.safetensors"
    assert sums[weights] == EXPECTED[f"conversions/{name}"][weights]


def test_contestants_in_a_file() -> None:
    """They are the models of the plan that was made of them."""
    size = Size(width=8, depth=2, heads=2, kv_heads=1, hidden=16, context=16, sequences=4)
    found, baseline = read_contestants(BEFORE / "compare/mine.yaml", size)
    planned = {each.name: each.config for each in ComparisonFolder(BEFORE / "compare/stopped").read_plan().contestants}
    assert baseline == "dense"
    assert len(found) == len(planned) - 1
    for each in found:
        assert each.config(size) == planned[each.name]
