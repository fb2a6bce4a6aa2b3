"""`moekit upcycle`."""

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
  moekit upcycle ./llama --experts 8 --top-k 2 --out ./mixtral
  moekit upcycle ./llama --experts 8 --top-k 8 --granularity 4 --out ./fine
  moekit upcycle ./llama --method drop --layers alternate --out ./dropped
  moekit upcycle ./llama --shared 1 --out ./qwen --dry-run""",
)
@click.argument("dense")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder.")
@click.option("--experts", type=WholeNumber(1), default=8, show_default=True, help="Copies of each network.")
@click.option("--top-k", type=WholeNumber(1), default=2, show_default=True, help="Experts that a token gets.")
@click.option(
    "--granularity",
    type=WholeNumber(1),
    default=1,
    show_default=True,
    help="Parts that each copy is cut into, each an expert; --top-k counts parts.",
)
@click.option("--layers", type=LAYERS, default="every", show_default=True, help="every, alternate, or a list: 0,2,4-7.")
@click.option("--shared", type=WholeNumber(0), default=0, show_default=True, help="Experts that every token gets.")
@click.option(
    "--method",
    type=OneOf(["copy", "noise", "drop"]),
    default="copy",
    show_default=True,
    help="Experts as copies, which are the same function; with noise; or with channels drawn anew.",
)
@click.option(
    "--noise", type=Number(), default=0.01, show_default=True, help="Of --method noise, in standard deviations."
)
@click.option(
    "--drop", type=Number(), default=0.5, show_default=True, help="Share of channels that --method drop draws."
)
@click.option(
    "--renormalize/--no-renormalize", default=None, help="Weights of a token's experts sum to one.  [default: they do]"
)
@click.option("--router-std", type=Number(), default=0.02, show_default=True, help="Of the routers' first weights.")
@click.option("--seed", type=WholeNumber(0), default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and what stands in the way; read no weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def upcycle(dense: str, out: Path, dry_run: bool, as_json: bool, debug: bool, **options: Any) -> None:
    """Make a mixture of experts of a dense model: its networks become experts.

    DENSE is a folder, a hub id (owner/name) or a GGUF file. With --method copy the result computes the same, which is
    checked before it gets its name; a run that was stopped goes on with the same command.
    """
    from moekit.convert import verbs

    if dry_run:
        show_plan(lambda: verbs.plan_upcycle(dense, options), out, print_dense_plan, as_json=as_json)
    else:
        print_dense_report(verbs.upcycle(dense, out, **options, progress=ProgressDisplay()), as_json=as_json)
