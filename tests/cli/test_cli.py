"""The command line as a user meets it: in a process of its own, with what it prints and how it ends."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = ["--size", "xs", "--seeds", "1", "--contestants", "moe", "--tokens", "8k"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from moekit.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def text_folder(root: Path) -> Path:
    for domain in ("one", "two"):
        (root / domain).mkdir(parents=True)
        for index in range(12):
            (root / domain / f"{index}.txt").write_text(f"{domain} number {index}\n" * 60 + str(index) * 300)
    return root


@pytest.mark.alone
def test_help_answers_fast_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['moekit', '--help']\n"
        "import moekit.cli\n"
        "try: moekit.cli.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    durations = []
    for _ in range(3):
        begin = time.perf_counter()
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        durations.append(time.perf_counter() - begin)
    assert "compare" in shown.stdout
    assert min(durations) < 0.5


@pytest.mark.alone
def test_import_is_cheap_beside_torch() -> None:
    """At most 0.3 s beyond `import torch`, for all that a comparison needs."""
    code = "import torch, time; t = time.perf_counter(); import moekit; print(time.perf_counter() - t)"
    best = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    )
    assert best < 0.3


def test_every_verb_has_help_with_an_example() -> None:
    shown = run("compare", "--help")
    assert shown.returncode == 0
    assert "Examples:" in shown.stdout
    assert "--budget" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--contestants", "dens"], "no contestant 'dens': did you mean 'dense'?"),
        (["--contestants", "nowhere.yaml"], "Cannot read nowhere.yaml"),
        (["--size", "xxl"], "no size 'xxl'"),
        (["--budget", "soon"], "write it like 90s"),
        (["--tokens", "many"], "write it like 500k"),
        (["--tokens", "1k", "--budget", "1m"], "exclude each other"),
        (["--seeds", "0"], "--seeds: must be 1 or more, not 0"),
        (["--resume", "x", "--data", "y"], "give it alone"),
        (["--resume", "x", "--routers"], "give it alone"),
        (["--resume", "x", "--tensorboard"], "give it alone"),
        (["--resume", "x", "--tune"], "give it alone"),
        (["--routers", "--contestants", "moe"], "--contestants and --routers exclude each other"),
        (["--contestants", "sinkhorm"], "did you mean 'sinkhorn'?"),
        (["--data", "missing.txt"], "missing.txt"),
        (["--data", "empty.txt"], "empty.txt"),
        (["--data", "small.txt"], "small.txt"),
        (["--contestant", "dense"], "--contestants"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "small.txt").write_text("too little")
    ended = run("compare", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_tensorboard_is_found_before_anything_slow(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['moekit', 'compare', '--tensorboard']\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "import moekit.cli\n"
        "try: moekit.cli.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "Error: TensorBoard is not installed; get it with: pip install 'moekit[tensorboard]'.\n"
    assert not list(tmp_path.iterdir())


def test_resuming_nothing_fails_with_status_1(tmp_path: Path) -> None:
    ended = run("compare", "--resume", str(tmp_path / "nothing"))
    assert ended.returncode == 1
    assert "holds no comparison" in ended.stderr
    assert "Traceback" in run("compare", "--resume", str(tmp_path / "nothing"), "--debug").stderr


def test_json_on_standard_output_alone(tmp_path: Path) -> None:
    data, out = text_folder(tmp_path / "texts"), tmp_path / "out"
    ended = run("compare", *TINY, "--data", str(data), "--out", str(out), "--json")
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)
    assert [domain["name"] for domain in results["corpus"]["domains"]] == ["one", "two"]
    assert results["contestants"][0]["name"] == "moe"
    assert json.loads((out / "results.json").read_text()) == results
    assert "report.html" in ended.stderr
    again = run("compare", *TINY, "--data", str(data), "--out", str(out))
    assert again.returncode == 2
    assert "holds a comparison already" in again.stderr
    shown = run("compare", "--resume", str(out))
    assert shown.returncode == 0
    assert "bits per byte" in shown.stdout
    short = run("compare", "--resume", str(out), "--markdown")
    assert short.stdout == (out / "report.md").read_text(encoding="utf-8")
    assert "| Contestant | Bits per byte |" in short.stdout
    assert "report.html" in short.stderr
    assert json.loads((out / "results.json").read_text()) == results, "what had ended was measured again"
    both = run("compare", "--resume", str(out), "--markdown", "--json")
    assert (both.returncode, both.stdout) == (2, "")
