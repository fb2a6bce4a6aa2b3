"""`moekit split`."""

from pathlib import Path
from typing import Any

import click

from moekit.cli.converting import LAYERS, print_dense_plan, print_dense_report, show_plan
from moekit.cli.option_types import Number, OneOf, WholeNumber
from moekit.cli.progress_display import ProgressDisplay
from moekit.cli.verb import Verb


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit split ./llama --experts 8 --top-k 8 --out ./same      the same function
  moekit split ./llama --experts 16 --top-k 4 --method co-activation --data essays/ --out ./split""",
)
@click.argument("dense")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder.")
@click.option("--experts", type=WholeNumber(2), default=8, show_default=True, help="Parts of each network.")
@click.option("--top-k", type=WholeNumber(1), default=2, show_default=True, help="Experts that a token gets.")
@click.option("--layers", type=LAYERS, default="every", show_default=True, help="every, alternate, or a list: 0,2,4-7.")
@click.option(
    "--method",
    type=OneOf(["random", "clustered", "co-activation"]),
    default="clustered",
    show_default=True,
    help="Channels that come together: any; those of like weights; those active on the same tokens of --data.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="SOURCE",
    help="Text for co-activation: a file or folder or a hub id; repeatable.  [default: the embedded corpus]",
)
@click.option(
    "--router-std",
    type=Number(),
    help="Of the routers' first weights.  [default: 0 where a token gets all experts, else 0.02]",
)
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and what stands in the way.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def split(
    dense: str, out: Path, data: tuple[str, ...], dry_run: bool, as_json: bool, debug: bool, **options: Any
) -> None:
    """Cut each feed-forward network of a dense model into experts of its channels.

    DENSE is a folder, a hub id (owner/name) or a GGUF file. Where a token gets all experts (--top-k equal to --experts)
    the result computes the same, which is checked before it gets its name; a run that was stopped goes on with the same
    command.
    """
    from moekit.convert import verbs

    if dry_run:
        show_plan(lambda: verbs.plan_split(dense, options, only_sizes=True), out, print_dense_plan, as_json=as_json)
    else:
        report = verbs.split(dense, out, **options, data=data, progress=ProgressDisplay())
        print_dense_report(report, as_json=as_json)
