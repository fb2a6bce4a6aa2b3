"""What `moekit compare` prints at its end, on standard output."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moekit.comparison.analysis.summary_table import SummaryRow, summary_table
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.results_schema import Results

# In the order of what decides: as many are shown as the terminal is wide.
_COLUMNS = {
    "name": "",
    "bits_per_byte": "bits per byte",
    "reached_flops": "FLOPs to level",
    "reached_seconds": "seconds to level",
    "params_total": "params",
    "params_active": "active",
    "tokens_per_second": "tokens/s",
    "peak_memory": "memory",
    "ms_per_token": "ms/token (p95)",
    "difference": "bits less baseline's",
}
_GAP = 2  # a space of padding, and one that the box puts between columns


def print_summary(results: Results) -> None:
    """Print the table, the answer, and what weakens the evidence for it, on standard output."""
    console = Console(highlight=False)
    console.print(_table(summary_table(results), console.width))
    verdict = judge(results)
    console.print()
    console.print(verdict.headline, style="bold", markup=False)
    for check in verdict.checks:
        if not check.good:
            console.print(f"! {check.text}", markup=False)
    good = sum(check.good for check in verdict.checks)
    console.print(
        f"✓ {good} of {len(verdict.checks)} checks of the evidence hold; the report names them.", markup=False
    )


def _table(rows: Sequence[SummaryRow], width: int) -> Table:
    """Make a table of as many columns as `width` characters hold, and of two at least.

    In how many seeds a level was reached stands below the figure, so that it costs no width.
    """
    columns: list[tuple[str, list[str]]] = []
    used = -_GAP
    for field, heading in _COLUMNS.items():
        cells = [getattr(row, field).replace(", ", "\n") for row in rows]
        used += _GAP + max(cell_len(line) for cell in (heading, *cells) for line in cell.split("\n"))
        if used > width and len(columns) > 1:
            break
        columns.append((heading, cells))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_edge=False)
    for heading, _ in columns:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for texts in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*map(escape, texts))
    return table
