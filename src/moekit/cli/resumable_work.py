"""Work of `moekit compare` that goes on where it was stopped, with progress on standard error."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from moekit.cli.progress_display import ProgressDisplay
from moekit.core.errors import MoekitError
from moekit.core.progress import Progress

Result = TypeVar("Result")


def resumable(root: Path, plan: Path, work: Callable[[Progress], Result]) -> Result:
    """Do it and give what came out; where it is stopped, say how it goes on, if there is a `plan` in `root` by then."""
    try:
        return work(ProgressDisplay())
    except MoekitError:
        if plan.exists():
            click.echo(f"What was done is kept; go on with: moekit compare --resume {shlex.quote(str(root))}", err=True)
        raise
