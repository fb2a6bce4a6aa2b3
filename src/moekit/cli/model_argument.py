"""A model named on the command line: checked, and loaded with a progress bar on standard error."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit.models import LanguageModel, NGram


def load_with_progress(model: str) -> "LanguageModel | NGram":
    """Load the model as moekit.load does, with a progress bar."""
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.core.progress import Task
    from moekit.models import load

    with Task(ProgressDisplay(), "Loading", unit="bytes") as task:
        return load(model, on_bytes=task.set)


def check_there(model: str) -> None:
    """Raise UsageError where there is no such file or folder, and it is no hub id either: before any other work."""
    if Path(model).exists():
        return
    from moekit.models.load_model import looks_like_hub_id, missing

    if not looks_like_hub_id(model):
        raise missing(model)
