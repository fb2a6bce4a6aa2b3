"""`moekit compare`."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moekit.cli.option_types import WholeNumber
from moekit.cli.verb import Verb
from moekit.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from moekit.comparison.results_schema import Results
    from moekit.core.progress import Progress


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit compare                                    the default set on the embedded corpus, 11 minutes
  moekit compare --data essays/ --data code/ --budget 2h --size m
  moekit compare --contestants dense,moe --seeds 1 --tokens 500k
  moekit compare --contestants dense,moe,upcycled   half of the budget dense, the rest as experts made of it
  moekit compare --contestants mine.yaml            see docs/compare.md
  moekit compare --routers                          contestants that differ in the router alone
  moekit compare --ladder --budget 90m --at 70b     at several sizes, and what that says of larger ones
  moekit compare --resume runs/compare-20260101-120000
  moekit compare --resume runs/compare-20260101-120000 --markdown     the short form, for a pull request""",
)
@click.option(
    "--contestants",
    metavar="FILE|NAMES",
    help="A YAML file, or names with commas between: dense, moe, moe-fine, hybrid, dense-large, ngram, gpt3, lstm, "
    "upcycled, or those of --routers. The first is the baseline.  [default: the first eight, gpt3 and lstm where the "
    "budget allows]",
)
@click.option(
    "--routers",
    is_flag=True,
    help="Compare routers instead: dense, softmax, noisy, switch, gshard, expert-choice, sigmoid-bias, hash, sinkhorn.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="SOURCE",
    help="A file or folder (text, source code, jsonl, csv, parquet) or a hub id (owner/name); repeatable. A domain is "
    "a source, its sub-folder, or a --domain-column.  [default: the embedded corpus]",
)
@click.option(
    "--text-column", default="text", show_default=True, help="Where rows (jsonl, csv, parquet, hub) hold their text."
)
@click.option("--domain-column", help="Where rows name their domain.")
@click.option("--budget", metavar="TIME", help="For the whole comparison: 90s, 8m, 2h.  [default: 11m]")
@click.option("--tokens", metavar="N", help="Training tokens of each run, instead of a budget: 500k, 2M.")
@click.option(
    "--seeds",
    type=WholeNumber(1),
    default=3,
    show_default=True,
    help="Runs of each contestant. One gives no answer; the report says which difference so many show in four of five "
    "comparisons, and how many half of it takes.",
)
@click.option(
    "--size",
    help="Of the models: xs, s, m or l; with --ladder, of the largest rung's.  [default: xs; with --ladder: s]",
)
@click.option(
    "--ladder",
    is_flag=True,
    help="Train at four sizes and many budgets, fit scaling laws, and report leverage there and up to three decades "
    "beyond.  [default budget: 60m]",
)
@click.option(
    "--at",
    metavar="SCALE",
    help="With --ladder, or with --resume of one: what it says at 1e21 FLOPs, or at 70b parameters.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for everything.  [default: runs/compare-<time>]")
@click.option(
    "--resume", "resume_from", type=click.Path(path_type=Path), help="Go on with a comparison that was stopped."
)
@click.option(
    "--tune",
    is_flag=True,
    help="First search each contestant's learning rate, as many trials for each; a budget pays for them too.",
)
@click.option("--tensorboard", is_flag=True, help="Also write events for TensorBoard into the folder of each run.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json on standard output.")
@click.option("--markdown", is_flag=True, help="Print the short form of the report, report.md, on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def compare(
    contestants: str | None,
    routers: bool,
    data: tuple[str, ...],
    text_column: str,
    domain_column: str | None,
    budget: str | None,
    tokens: str | None,
    seeds: int,
    size: str | None,
    ladder: bool,
    at: str | None,
    out: Path | None,
    resume_from: Path | None,
    tune: bool,
    tensorboard: bool,
    as_json: bool,
    markdown: bool,
    debug: bool,
) -> None:
    """Train dense and mixture-of-experts models on the same text at the same compute, and report what each buys.

    Beside them stand an LSTM and an n-gram model, for reference.
    """
    if budget and tokens:
        raise UsageError("--budget and --tokens exclude each other; give one of them.")
    if contestants and routers:
        raise UsageError("--contestants and --routers exclude each other; give one of them.")
    if as_json and markdown:
        raise UsageError("--json and --markdown exclude each other; give one of them. Both files are in the folder.")
    if at and not (ladder or resume_from):
        raise UsageError("--at asks a ladder; give --ladder, or --resume with the folder of one.")
    if ladder and (tune or tensorboard or markdown):
        raise UsageError("--tune, --tensorboard and --markdown are for one comparison, not for a ladder of them.")
    planned = (data, contestants, routers, tokens, budget, out, tune, tensorboard, ladder, size)
    if resume_from and any(planned):
        raise UsageError("--resume goes on with what was planned; give it alone, or with --at.")
    if resume_from:
        _resume(resume_from, at, as_json=as_json, markdown=markdown)
        return
    # Arguments are checked before anything slow is imported.
    from moekit.cli.quantities import parse_count, parse_duration
    from moekit.comparison.spec.comparison_request import check_tensorboard
    from moekit.comparison.spec.contestant_selection import choose_contestants, size_named

    budget_seconds = parse_duration(budget) if budget else None
    training_tokens = parse_count(tokens) if tokens else None
    if ladder:
        from moekit.cli.ladder_command import climb

        chosen = _asked(contestants, "xs", routers=routers)
        root = out or Path("runs") / time.strftime("ladder-%Y%m%d-%H%M%S")
        climb(
            root,
            contestants=chosen,
            largest=size,
            at=at,
            as_json=as_json,
            data=data,
            text_column=text_column,
            domain_column=domain_column,
            seeds=seeds,
            budget_seconds=budget_seconds,
            tokens=training_tokens,
        )
        return
    size = size or "xs"
    chosen = _asked(contestants, size, routers=routers)
    choose_contestants(chosen, size_named(size))
    if tensorboard:
        check_tensorboard()
    root = out or Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")

    def start(progress: "Progress") -> "Results":
        from moekit.comparison import compare as run_comparison

        return run_comparison(
            root,
            data=data,
            text_column=text_column,
            domain_column=domain_column,
            contestants=chosen,
            size=size,
            seeds=seeds,
            budget_seconds=budget_seconds,
            tokens=training_tokens,
            tune=tune,
            tensorboard=tensorboard,
            command=shlex.join(["moekit", *sys.argv[1:]]),
            progress=progress,
        )

    _work(root, start, as_json=as_json, markdown=markdown)


def _asked(contestants: str | None, size: str, *, routers: bool) -> Path | list[str] | None:
    """Read what was asked for: a YAML file, names, or the default set."""
    from moekit.comparison.spec.contestant_selection import size_named
    from moekit.comparison.spec.contestants import router_contestants

    if routers:
        return list(router_contestants(size_named(size)))
    if contestants is None:
        return None
    if contestants.endswith((".yaml", ".yml")):
        return Path(contestants)
    return [name.strip() for name in contestants.split(",")]


def _resume(root: Path, at: str | None, *, as_json: bool, markdown: bool) -> None:
    """Go on with a comparison, or with a ladder where `root` holds one."""
    from moekit.comparison.ladder.rungs import LadderFolder

    if LadderFolder(root).plan.exists():
        from moekit.cli.ladder_command import climb_on

        if markdown:
            raise UsageError("--markdown is for one comparison, not for a ladder of them.")
        climb_on(root, at=at, as_json=as_json)
        return
    if at:
        raise UsageError(f"--at asks a ladder, and {root} holds none.")

    def go_on(progress: "Progress") -> "Results":
        from moekit.comparison import resume

        return resume(root, progress=progress)

    _work(root, go_on, as_json=as_json, markdown=markdown)


def _work(root: Path, work: "Callable[[Progress], Results]", *, as_json: bool, markdown: bool) -> None:
    """Do it, with progress on standard error, and print what came out."""
    from moekit.cli.comparison_summary import print_summary
    from moekit.cli.resumable_work import resumable
    from moekit.comparison.spec.comparison_folder import ComparisonFolder

    folder = ComparisonFolder(root)
    results = resumable(root, folder.plan, work)
    if as_json:
        click.echo(folder.results.read_text(encoding="utf-8"))
    elif markdown:
        click.echo(folder.short_report.read_text(encoding="utf-8"), nl=False)
    else:
        print_summary(results)
    click.echo(f"Report: {folder.report}", err=as_json or markdown)
