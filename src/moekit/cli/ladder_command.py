"""`moekit compare --ladder`: progress on standard error, and what the ladder says on standard output."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moekit.comparison.ladder.ladder_schema import LadderResults
    from moekit.core.progress import Progress


def climb(
    root: Path,
    *,
    contestants: Path | Sequence[str] | None,
    largest: str | None,
    at: str | None,
    as_json: bool,
    data: Sequence[str],
    text_column: str,
    domain_column: str | None,
    seeds: int,
    budget_seconds: float | None,
    tokens: int | None,
) -> None:
    """Train and report a new ladder; arguments are checked before anything slow is imported."""
    from moekit.comparison.ladder.rungs import DEFAULT_LARGEST, choose_for, sizes_up_to
    from moekit.comparison.ladder.target_scale import parse_scale

    sizes = sizes_up_to(largest or DEFAULT_LARGEST)
    choose_for(contestants, sizes)
    if at:
        parse_scale(at)

    def start(progress: "Progress") -> "LadderResults":
        from moekit.comparison import compare_ladder

        return compare_ladder(
            root,
            data=data,
            text_column=text_column,
            domain_column=domain_column,
            contestants=contestants,
            sizes=sizes,
            seeds=seeds,
            budget_seconds=budget_seconds,
            tokens=tokens,
            at=at,
            command=shlex.join(["moekit", *sys.argv[1:]]),
            progress=progress,
        )

    _work(root, start, as_json=as_json)


def climb_on(root: Path, *, at: str | None, as_json: bool) -> None:
    """Go on with the ladder in `root`, or ask a finished one about another scale."""
    from moekit.comparison.ladder.target_scale import parse_scale

    target = parse_scale(at) if at else None

    def go_on(progress: "Progress") -> "LadderResults":
        from moekit.comparison import resume_ladder

        return resume_ladder(root, target=target, progress=progress)

    _work(root, go_on, as_json=as_json)


def print_ladder(results: "LadderResults") -> None:
    """Print the held-out rung, leverage, and what it comes to, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from moekit.comparison.ladder.ladder_answer import at_decade, leverage_text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    headings = ("", "leverage at the end", "a decade beyond", "three beyond")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for one in results.contestants:
        if one.leverage:
            table.add_row(escape(one.name), *(leverage_text(at_decade(one, decade)) for decade in (0, 1, 3)))
    console.print(table)
    for sentence in [*results.sentences, *(results.at.sentences if results.at else ())]:
        console.print(f"• {sentence}", markup=False)


def _work(root: Path, work: "Callable[[Progress], LadderResults]", *, as_json: bool) -> None:
    """Do it, with progress on standard error, and print what came out."""
    from moekit.cli.resumable_work import resumable
    from moekit.comparison.ladder.rungs import LadderFolder

    folder = LadderFolder(root)
    results = resumable(root, folder.plan, work)
    if as_json:
        click.echo(folder.results.read_text(encoding="utf-8"))
    else:
        print_ladder(results)
    click.echo(f"Report: {folder.report}", err=as_json)
