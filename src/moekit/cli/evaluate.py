"""`moekit evaluate`."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from moekit.data import Document
    from moekit.evaluation import Evaluation
    from moekit.models import LanguageModel, NGram


@click.command(
    epilog="""\b
Examples:
  moekit evaluate ./my-model --data essays/
  moekit evaluate ./my-model --json             on the held-out text of the embedded corpus
  moekit evaluate model.arpa --data notes.txt"""
)
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    metavar="SOURCE",
    help="A file or folder (text, source code, jsonl, parquet) or a hub id (owner/name); repeatable.  "
    "[default: the held-out text of the embedded corpus]",
)
@click.option(
    "--text-column", default="text", show_default=True, help="Where rows (jsonl, parquet, hub) hold their text."
)
@click.option("--domain-column", help="Where rows name their domain.")
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Tokens that a prediction may see at most.  [default: the model's, up to 2048]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def evaluate(
    model: str,
    data: tuple[str, ...],
    text_column: str,
    domain_column: str | None,
    context: int | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Measure bits per byte and perplexity of MODEL on a text.

    MODEL is a folder, a hub id (owner/name), or an n-gram model's .arpa file. For a masked model they are those of the
    pseudo-log-likelihood, which is no probability of the text.
    """
    from moekit.cli.model_argument import check_there, load_with_progress

    check_there(model)
    documents = _documents(data, text_column, domain_column, lambda text: click.echo(text, err=True))
    loaded = load_with_progress(model)
    result = _score(loaded, documents, context)
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        _print(result)


def _documents(
    data: tuple[str, ...], text_column: str, domain_column: str | None, say: "Callable[[str], None]"
) -> "list[Document]":
    from moekit.data import embedded_documents, read_sources, split_documents

    if not data:
        return list(split_documents(embedded_documents(), seed=0).held_out)
    return read_sources(data, text_column=text_column, domain_column=domain_column, say=say)


def _score(loaded: "LanguageModel | NGram", documents: "list[Document]", context: int | None) -> "Evaluation":
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.core.progress import Task
    from moekit.evaluation import evaluate as evaluate_documents
    from moekit.evaluation import scorer_of

    score = scorer_of(loaded, context)
    with Task(ProgressDisplay(), "Documents", total=len(documents), unit="documents") as task:
        return evaluate_documents(score, documents, task.set)


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
