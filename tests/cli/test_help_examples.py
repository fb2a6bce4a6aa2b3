"""What stands under Examples in a verb's help can be typed: every line is read, and the first one runs."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.in_process import run_moekit
from tests.cli.test_options import ALL
from tests.docs.furnished_folder import furnish
from tests.docs.test_pages import check_command

from moekit.cli import agents as agents_verbs

# The first example of a comparison takes eleven minutes.
TOO_LONG = {("compare",)}


def examples_of(path: tuple[str, ...]) -> list[list[str]]:
    """Read the commands of a verb's help, without what is said beside them and what a shell does."""
    lines = [line for line in (ALL[path].epilog or "").splitlines() if line.startswith("  ") and "moekit " in line]
    commands = [line.rpartition("| ")[2].strip().split("   ")[0] for line in lines]
    return [shlex.split(command)[1:] for command in commands]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_example_is_read(path: tuple[str, ...]) -> None:
    examples = examples_of(path)
    assert examples
    for words in examples:
        assert tuple(words[: len(path)]) == path
        check_command(words[: words.index("<")] if "<" in words else words)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("path", [path for path in ALL if path not in TOO_LONG], ids=" ".join)
def test_the_first_example_runs(path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(*_: Any) -> None:
        """Serve nobody."""

    furnish(tmp_path)
    if path == ("quantize",):
        shutil.copytree(tmp_path / "llama", tmp_path / "mixtral")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": "2"}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[agents_verbs.commands["serve"].callback.__module__], "_serve", serve)
    ended = run_moekit(*examples_of(path)[0], stdin=b"One\n")
    assert ended.status == 0, ended.stderr
