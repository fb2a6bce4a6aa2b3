"""What `moekit compare` prints at its end, on standard output."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moekit.comparison.analysis.summary_table import summary_table
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.results_schema import Results

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


def print_summary(results: Results) -> None:
    """Print the table and the verdict on standard output."""
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
