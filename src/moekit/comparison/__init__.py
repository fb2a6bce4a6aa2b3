"""`moekit compare`: the experiment, what it measures, and its report.

`compare` does it all in one call and `resume` goes on with what was stopped; both give `Results`. `compare_ladder` does
it at several sizes, and `resume_ladder` goes on with one; both give `LadderResults`. They are imported when they are
asked for, since they take torch.

spec: what is compared, and the frozen plan. run: training runs, each in a process of its own. results_schema: what
comes out. analysis: what that says. ladder: scaling laws over several sizes. report: the pages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit.comparison.experiment import compare, resume
    from moekit.comparison.ladder.ladder_schema import LadderResults
    from moekit.comparison.ladder_experiment import compare_ladder, resume_ladder
    from moekit.comparison.results_schema import Results

__all__ = ["LadderResults", "Results", "compare", "compare_ladder", "resume", "resume_ladder"]

_HOMES = {
    "LadderResults": "ladder.ladder_schema",
    "Results": "results_schema",
    "compare": "experiment",
    "compare_ladder": "ladder_experiment",
    "resume": "experiment",
    "resume_ladder": "ladder_experiment",
}


def __getattr__(name: str) -> object:
    """Import one of `__all__` when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
