"""Runs that are killed again and again, and what they leave in the end: what tests of resumed writing share."""

import subprocess
import sys
from pathlib import Path


def killed(folder: Path, kills: int, *recipe: Path) -> dict[str, bytes]:
    """Give what killed_writer.py writes undisturbed, file by file; all results of killed runs have to equal it."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("killed_writer.py")),
        str(folder),
        str(kills),
        *map(str, recipe),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not run.returncode, run.stderr
    whole = _bytes(folder / "whole" / "out")
    results = run.stdout.split()
    assert results
    for result in results:
        assert _bytes(folder / result / "out") == whole
    return whole


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
