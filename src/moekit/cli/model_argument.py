"""Loading a model with a progress bar on standard error."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit.models import LanguageModel, NGram


def load_with_progress(model: str) -> "LanguageModel | NGram":
    """What moekit.load gives."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from moekit.models import load

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("Loading"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return load(model, on_bytes=lambda done, total: progress.update(task, completed=done, total=total))


def check_there(model: str) -> None:
    """Raise UsageError where there is no such file or folder, and it is no hub id either: before any other work."""
    if Path(model).exists():
        return
    from moekit.models.load_model import looks_like_hub_id, missing

    if not looks_like_hub_id(model):
        raise missing(model)
