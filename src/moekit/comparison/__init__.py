"""`moekit compare`: the experiment, what it measures, and its report.

`compare` does it all in one call and `resume` goes on with what was stopped; both give `Results`. They are imported
when they are asked for, since they take torch.

spec: what is compared, and the frozen plan. run: training runs, each in a process of its own. results_schema: what
comes out. analysis: what that says. report: the page.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit.comparison.experiment import compare, resume
    from moekit.comparison.results_schema import Results

__all__ = ["Results", "compare", "resume"]


def __getattr__(name: str) -> object:
    """Import one of `__all__` when it is asked for."""
    if name == "Results":
        from moekit.comparison.results_schema import Results

        return Results
    if name in __all__:
        from moekit.comparison import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
