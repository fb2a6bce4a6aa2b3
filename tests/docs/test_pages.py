"""The pages and the README: their Python runs, and their commands exist with the options that stand there."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from tests.docs.furnished_folder import furnish, thin_out_the_corpus

from moekit.cli import moekit as command_line

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?P<skip><!-- not run: .+ -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


def python_of(page: Path) -> list[str]:
    """Read a page's Python, without the blocks before which a comment says why they are not run here."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [block["code"] for block in found if block["language"] == "python" and not block["skip"]]


def commands_of(text: str) -> list[list[str]]:
    """Read the commands of moekit in blocks without a language."""
    blocks = [block["code"] for block in FENCE.finditer(text) if not block["language"]]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("moekit ")]


def check_command(words: list[str]) -> None:
    """Parse a command as the command line does, and run nothing; raise click.UsageError where it does not exist."""
    command: click.Command = command_line
    while isinstance(command, click.Group):
        if words[0] in ("-h", "--help", "--version"):
            return
        if words[0] not in command.commands:
            raise click.UsageError(f"There is no {words[0]}.")
        command, words = command.commands[words[0]], words[1:]
    if "--help" not in words:
        command.make_context(command.name, list(words))


def name_of(page: Path) -> str:
    """Name a page in the test's name."""
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    thin_out_the_corpus(monkeypatch)
    furnish(tmp_path)
    names: dict[str, Any] = {}
    for number, code in enumerate(python_of(page)):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page.read_text(encoding="utf-8"))], ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for words in commands_of(page.read_text(encoding="utf-8")):
        check_command(words)


def test_commands_that_do_not_exist_are_found() -> None:
    for line in ("trian mine.yaml", "train mine.yaml --ouf x", "agents answer agents.yaml", "upcycle a --experts many"):
        with pytest.raises(click.UsageError):
            check_command(line.split())
    assert commands_of("```\nmoekit train a.yaml  # words\nmake test\n```\n") == [["train", "a.yaml"]]
