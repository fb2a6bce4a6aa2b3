"""`moekit compare`."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moekit.core.errors import MoekitError, UsageError, did_you_mean

if TYPE_CHECKING:
    from moekit.compare.spec.comparison_plan import ComparisonFolder
    from moekit.compare.spec.comparison_request import ComparisonRequest
    from moekit.compare.spec.contestants import Contestant


@click.command(
    epilog="""\b
Examples:
  moekit compare                                    the default set on the embedded corpus, 11 minutes
  moekit compare --data essays/ --data code/ --budget 2h --size m
  moekit compare --contestants dense,moe --seeds 1 --tokens 500k
  moekit compare --contestants dense,moe,upcycled   half of the budget dense, the rest as experts made of it
  moekit compare --contestants mine.yaml            see docs/compare.md
  moekit compare --routers                          contestants that differ in the router alone
  moekit compare --resume runs/compare-20260101-120000"""
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
    help="A file or folder (text, source code, jsonl, parquet) or a hub id (owner/name); repeatable. A domain is a "
    "source, its sub-folder, or a --domain-column.  [default: the embedded corpus]",
)
@click.option(
    "--text-column", default="text", show_default=True, help="Where rows (jsonl, parquet, hub) hold their text."
)
@click.option("--domain-column", help="Where rows name their domain.")
@click.option("--budget", metavar="TIME", help="For the whole comparison: 90s, 8m, 2h.  [default: 11m]")
@click.option("--tokens", metavar="N", help="Training tokens of each run, instead of a budget: 500k, 2M.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each contestant.")
@click.option("--size", default="xs", show_default=True, help="Of the models: xs, s, m or l.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for everything.  [default: runs/compare-<time>]")
@click.option(
    "--resume", "resume_from", type=click.Path(path_type=Path), help="Go on with a comparison that was stopped."
)
@click.option("--tensorboard", is_flag=True, help="Also write events for TensorBoard into the folder of each run.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json on standard output.")
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
    size: str,
    out: Path | None,
    resume_from: Path | None,
    tensorboard: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Train dense and mixture-of-experts models on the same text at the same compute, and report what each buys.

    Beside them stand an LSTM and an n-gram model, for reference.
    """
    if budget and tokens:
        raise UsageError("--budget and --tokens exclude each other; give one of them.")
    if contestants and routers:
        raise UsageError("--contestants and --routers exclude each other; give one of them.")
    if resume_from and (data or contestants or routers or tokens or budget or out or tensorboard):
        raise UsageError("--resume goes on with what was planned; give it alone.")
    # Arguments are checked before anything slow is imported.
    request = None
    if not resume_from:
        chosen = _contestants(contestants, size, routers=routers)
        request = _request(*chosen, budget, tokens, seeds, size, tensorboard=tensorboard)

    # torch and rich take seconds to import: only now that the arguments are good.
    from moekit.cli.display import Display, print_summary
    from moekit.compare import experiment
    from moekit.compare.spec.comparison_plan import ComparisonFolder
    from moekit.data import load_corpus

    root = resume_from or out or Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")
    folder = ComparisonFolder(root)
    with Display() as display:
        try:
            if request is None:
                results = experiment.resume(folder, display)
            else:
                _check_new(folder)
                display.message("Reading the text")
                corpus = load_corpus(data, text_column=text_column, domain_column=domain_column, say=display.message)
                results = experiment.start(request, corpus, folder, display)
        except MoekitError as error:
            if folder.plan.exists():
                display.message(f"What was done is kept; go on with: moekit compare --resume {shlex.quote(str(root))}")
            raise error
    if as_json:
        click.echo(folder.results.read_text(encoding="utf-8"))
    else:
        print_summary(results)
    click.echo(f"Report: {folder.report}", err=as_json)


def _check_new(folder: "ComparisonFolder") -> None:
    if folder.plan.exists():
        raise UsageError(
            f"{folder.root} holds a comparison already: go on with it with --resume, or name another --out."
        )


def _contestants(
    asked: str | None, size_name: str, *, routers: bool
) -> "tuple[list[Contestant], list[Contestant], str]":
    """Who takes part, who does too where the budget allows, and the baseline's name."""
    from moekit.compare.spec.contestant_selection import check_set, pick_contestant, read_contestants
    from moekit.compare.spec.contestants import SIZES, default_set, router_contestants

    if size_name not in SIZES:
        raise UsageError(f"There is no size {size_name!r}: {did_you_mean(size_name, SIZES)}")
    size = SIZES[size_name]
    optional: list[Contestant] = []
    if asked is not None and asked.endswith((".yaml", ".yml")):
        chosen, baseline = read_contestants(Path(asked), size)
        return chosen, optional, baseline
    if asked is not None:
        chosen = [pick_contestant(name.strip(), size) for name in asked.split(",")]
    elif routers:
        chosen = list(router_contestants(size).values())
    else:
        chosen, optional = default_set(size)
    return chosen, optional, check_set(chosen, None)


def _request(
    contestants: "list[Contestant]",
    optional: "list[Contestant]",
    baseline: str,
    budget: str | None,
    tokens: str | None,
    seeds: int,
    size_name: str,
    *,
    tensorboard: bool,
) -> "ComparisonRequest":
    from moekit.cli.quantities import parse_count, parse_duration
    from moekit.compare.spec.comparison_request import ComparisonRequest, check_tensorboard
    from moekit.compare.spec.contestants import SIZES

    if tensorboard:
        check_tensorboard()
    return ComparisonRequest(
        contestants=contestants,
        optional=optional,
        baseline=baseline,
        size_name=size_name,
        size=SIZES[size_name],
        seeds=seeds,
        command=shlex.join(["moekit", *sys.argv[1:]]),
        budget_seconds=None if tokens else parse_duration(budget or "11m"),
        budget_asked=budget is not None,
        tokens=parse_count(tokens) if tokens else None,
        tensorboard=tensorboard,
    )
