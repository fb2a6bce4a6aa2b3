"""What `moekit compare` shows while it works (on standard error) and at its end (on standard output)."""

from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from moekit.compare.analysis.verdict import judge, summary_table
from moekit.compare.experiment import Listener
from moekit.compare.results_schema import Results, Run
from moekit.compare.spec.comparison_plan import ComparisonPlan
from moekit.core.formatting import count_text, duration_text
from moekit.training import StepReport

# What of the summary fits 80 columns; the sentences below the table, and the report, say the rest.
_COLUMNS = {
    "name": "",
    "params_total": "params",
    "params_active": "active",
    "bits_per_byte": "bits per byte",
    "tokens_per_second": "tokens/s",
    "peak_memory": "memory",
    "ms_per_token": "ms/token (p95)",
}


class Display(Listener):
    """A bar for the current run with loss, tokens per second and time left; a line for each run that has ended."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
        )
        self.runs: TaskID | None = None
        self.current: TaskID | None = None
        self.plan: ComparisonPlan | None = None
        self.running = ""
        self.steps = 0  # of the run that goes on
        self.measured = ""
        self.first: StepReport | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def message(self, text: str) -> None:
        self.console.print(text, markup=False)

    def planned(self, plan: ComparisonPlan, runs: int) -> None:
        self.plan = plan
        tokens = plan.training.steps * plan.training.step_tokens
        self.message(
            f"Training {len(plan.contestants)} contestants with {len(plan.seeds)} seed(s): {runs} runs of "
            f"{count_text(tokens)} tokens ({plan.training.steps} steps) in {plan.training.precision}"
        )
        self.runs = self.progress.add_task("all runs", total=runs, figures="")

    def run_started(self, contestant: str, seed: int) -> None:
        assert self.plan is not None
        self.measured, self.first = "", None
        self.running = f"{contestant}, seed {seed}"
        self.steps = self.plan.steps_of(contestant)
        self.current = self.progress.add_task(self.running, total=self.steps, figures="starting")

    def step(self, report: StepReport) -> None:
        if self.current is None or self.plan is None:
            return
        self.first = self.first or report
        if report.bits_per_byte is not None:
            self.measured = f" · held out {report.bits_per_byte:.3f}"
        training = self.plan.training
        for warning in report.warnings:
            self.message(f"  {self.running}: {warning}")
        figures = f"loss {report.loss:.3f}{self.measured}"
        if report.load_max_over_mean is not None:
            figures += f" · load {report.load_max_over_mean:.1f}x, {report.dead_experts} dead"
        done = report.step - self.first.step
        if done:
            a_step = (report.seconds - self.first.seconds) / done
            left = a_step * (self.steps - report.step)
            figures += f" · {count_text(training.step_tokens / a_step)} tokens/s · {duration_text(left)} left"
        self.progress.update(self.current, completed=report.step, figures=figures)

    def run_ended(self, contestant: str, run: Run) -> None:
        if self.current is not None:
            self.progress.remove_task(self.current)
            self.current = None
        if self.runs is not None:
            self.progress.advance(self.runs)
        if run.status == "failed":
            self.message(f"  {contestant}, seed {run.seed}: failed: {run.failure}")
        elif run.bits_per_byte is not None and run.seconds is not None:
            self.message(
                f"  {contestant}, seed {run.seed}: {run.bits_per_byte:.3f} bits per byte after "
                f"{duration_text(run.seconds)} of training"
            )


def print_summary(results: Results) -> None:
    """The table and the verdict, on standard output."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for field, heading in _COLUMNS.items():
        table.add_column(heading, justify="left" if field == "name" else "right", no_wrap=True)
    for row in summary_table(results):
        table.add_row(*(escape(getattr(row, field)) for field in _COLUMNS))
    console.print(table)
    verdict = judge(results)
    console.print(verdict.headline, style="bold", markup=False)
    for sentence in verdict.sentences.values():
        console.print(f"• {sentence}", markup=False)
    for check in verdict.checks:
        console.print(f"{'✓' if check.good else '!'} {check.text}", markup=False)
