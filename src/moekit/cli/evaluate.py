"""`moekit evaluate`."""

from typing import TYPE_CHECKING

import click

from moekit.cli.memory_option import memory_option, memory_options
from moekit.cli.option_types import WholeNumber
from moekit.cli.verb import Verb

if TYPE_CHECKING:
    from moekit.evaluation import Evaluation


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit evaluate ./my-model --data essays/
  moekit evaluate ./my-model --json             on the held-out text of the embedded corpus
  moekit evaluate model.arpa --data notes.txt""",
)
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    metavar="SOURCE",
    help="A file or folder (text, source code, jsonl, csv, parquet) or a hub id (owner/name); repeatable.  "
    "[default: the held-out text of the embedded corpus]",
)
@click.option(
    "--text-column", default="text", show_default=True, help="Where rows (jsonl, csv, parquet, hub) hold their text."
)
@click.option("--domain-column", help="Where rows name their domain.")
@click.option(
    "--context",
    type=WholeNumber(1),
    help="Tokens that a prediction may see at most.  [default: the model's, up to 2048]",
)
@memory_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def evaluate(
    model: str,
    data: tuple[str, ...],
    text_column: str,
    domain_column: str | None,
    context: int | None,
    memory: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Measure bits per byte and perplexity of MODEL on a text.

    MODEL is a folder, a hub id (owner/name), a GGUF file, or an n-gram model's .arpa file. For a masked model they are
    those of the pseudo-log-likelihood, which is no probability of the text.
    """
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.evaluation import evaluate as evaluate_model

    result = evaluate_model(
        model,
        data,
        text_column=text_column,
        domain_column=domain_column,
        context=context,
        memory=memory_options(memory),
        progress=ProgressDisplay(),
    )
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        _print(result)


def _print(result: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table

    from moekit.core.formatting import bytes_text, count_text

    table = Table(box=None, show_header=False)
    table.add_row("bits per byte", f"{result.bits_per_byte:.4f}")
    if len(result.by_domain) > 1:
        for name, bits in result.by_domain.items():
            table.add_row(f"  {name}", f"{bits:.4f}")
    table.add_row("perplexity per token", f"{result.perplexity:.3f}")
    table.add_row("tokens", count_text(result.tokens))
    table.add_row("text", bytes_text(result.bytes))
    Console(highlight=False).print(table)
