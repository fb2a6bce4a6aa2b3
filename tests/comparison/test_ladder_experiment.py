"""A ladder from the command line to its report: two tiny rungs, stopped, resumed, asked again."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from moekit.cli.compare import compare
from moekit.comparison import compare_ladder, ladder_experiment, resume_ladder
from moekit.comparison.ladder.ladder_schema import LadderResults, read_ladder
from moekit.comparison.ladder.rungs import LadderFolder, tokens_at
from moekit.core.errors import MoekitError, UsageError

SIZES = ("w48", "w64")
TOKENS = 2048 * 12


def climb(out: Path, data: Path) -> LadderResults:
    return compare_ladder(
        out,
        data=[data],
        contestants=["dense", "moe"],
        sizes=SIZES,
        seeds=1,
        tokens=TOKENS,
        at="1e12",
        command="moekit x",
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of a megabyte of sentences, in files enough to hold some out."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(24):
        lines = [
            f"In file {number} line {line} holds {line * number % 97} of {line + number} things." for line in range(220)
        ]
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    out = tmp_path_factory.mktemp("ladder") / "out"
    climb(out, text)
    return out


@pytest.mark.slow
def test_a_ladder_leaves_its_rungs_and_what_they_say(climbed: Path) -> None:
    folder = LadderFolder(climbed)
    plan, results = folder.read_plan(), read_ladder(folder.results)
    assert [rung.size for rung in plan.rungs] == list(SIZES)
    assert [rung.tokens for rung in plan.rungs] == [tokens_at("w48", "w64", TOKENS), TOKENS]
    for rung in plan.rungs:
        for part in ("plan.json", "results.json", "report.html"):
            assert (folder.rung(rung.folder) / part).exists()
    assert results.held_out is None
    assert results.noise_assumed
    assert results.at is not None
    assert set(results.at.leverage) == {"moe"}
    assert "</html>" in folder.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_is_done_is_not_done_again(climbed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A finished rung is read, one that was stopped before its results is resumed; the answer is the same."""
    copy = tmp_path / "copy"
    shutil.copytree(climbed, copy)
    plan = LadderFolder(copy).read_plan()
    (copy / plan.rungs[1].folder / "results.json").unlink()
    resumed = []
    monkeypatch.setattr(
        ladder_experiment.experiment,
        "resume",
        lambda root, progress: (
            resumed.append(root.name) or ladder_experiment.read_results(climbed / plan.rungs[1].folder / "results.json")
        ),
    )
    again = resume_ladder(copy)
    assert resumed == [plan.rungs[1].folder]
    before = read_ladder(LadderFolder(climbed).results)
    assert again.contestants == before.contestants
    assert again.at is None


@pytest.mark.slow
def test_a_finished_ladder_is_asked_again(climbed: Path) -> None:
    run = CliRunner().invoke(compare, ["--resume", str(climbed), "--at", "1e21", "--json"])
    assert run.exit_code == 0, run.output
    answer = json.loads(run.stdout)["at"]
    assert answer["by"] == "published laws"
    shown = CliRunner().invoke(compare, ["--resume", str(climbed), "--at", "1e12"])
    assert "leverage at the end" in shown.stdout
    assert "Report:" in shown.stdout


@pytest.mark.slow
def test_a_ladder_is_not_overwritten(climbed: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="holds a comparison already"):
        climb(climbed, text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--at", "1e21"], "--at asks a ladder"),
        (["--ladder", "--at", "8x7b"], "active parameters"),
        (["--ladder", "--size", "xl"], "no size 'xl'"),
        (["--ladder", "--contestants", "dense,ngram"], "no FLOPs"),
        (["--ladder", "--tensorboard"], "--tensorboard"),
        (["--resume", "nowhere", "--at", "1e21"], "holds none"),
        (["--resume", "nowhere", "--ladder"], "give it alone"),
        (["--ladder", "--budget", "1h", "--tokens", "1m"], "exclude each other"),
    ],
)
def test_mistakes_are_told_before_anything_starts(arguments: list[str], says: str) -> None:
    run = CliRunner().invoke(compare, arguments)
    assert run.exit_code != 0
    assert says in str(run.exception or "") + run.output


def test_no_ladder_to_resume(tmp_path: Path) -> None:
    with pytest.raises(MoekitError, match="no ladder that could be resumed"):
        resume_ladder(tmp_path)
    LadderFolder(tmp_path).plan.write_text("{}", encoding="utf-8")
    with pytest.raises(MoekitError, match="cannot be read"):
        resume_ladder(tmp_path)
