"""`moekit split`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.converting import LAYERS, run_conversion

if TYPE_CHECKING:
    from torch import Tensor

    from moekit.convert.dense_to_moe.dense_conversion import Conversion

_ROWS, _LENGTH = 16, 128


@click.command(
    epilog="""\b
Examples:
  moekit split ./llama --experts 8 --top-k 8 --out ./same      the same function
  moekit split ./llama --experts 16 --top-k 4 --method co-activation --data essays/ --out ./split"""
)
@click.argument("dense")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder.")
@click.option("--experts", type=click.IntRange(2), default=8, show_default=True, help="Parts of each network.")
@click.option("--top-k", type=click.IntRange(1), default=2, show_default=True, help="Experts that a token gets.")
@click.option("--layers", type=LAYERS, default="every", show_default=True, help="every, alternate, or a list: 0,2,4-7.")
@click.option(
    "--method",
    type=click.Choice(["random", "clustered", "co-activation"]),
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
    type=float,
    help="Of the routers' first weights.  [default: 0 where a token gets all experts, else 0.02]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and what stands in the way.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def split(
    dense: str, out: Path, data: tuple[str, ...], dry_run: bool, as_json: bool, debug: bool, **options: Any
) -> None:
    """Cut each feed-forward network of a dense model into experts of its channels.

    DENSE is a folder or a hub id (owner/name). Where a token gets all experts (--top-k equal to --experts) the result
    computes the same, which is checked before it gets its name; a run that was stopped goes on with the same command.
    """

    def plan() -> "Conversion":
        from moekit.convert.dense_to_moe.splitting import Splitting, plan_splitting
        from moekit.core.validation import validate
        from moekit.models import find

        folder, chosen = find(dense), validate(Splitting, options, where="moekit split")
        if dry_run:
            return plan_splitting(folder, chosen, only_sizes=True)
        tokens = _tokens(folder, data) if chosen.method == "co-activation" else None
        return plan_splitting(folder, chosen, tokens, lambda text: click.echo(text, err=True))

    run_conversion(plan, out, dry_run=dry_run, as_json=as_json)


def _tokens(folder: Path, data: tuple[str, ...]) -> "Tensor":
    """Rows of tokens from all over the text, (B, T)."""
    import torch

    from moekit.config import ModelConfig
    from moekit.core.errors import UsageError
    from moekit.data import embedded_documents, read_sources
    from moekit.data.tokenizers import tokenizer_of
    from moekit.models.folder import read_config

    _, config = read_config(folder)
    assert isinstance(config, ModelConfig)
    tokenizer = tokenizer_of(folder, config.vocab_size)
    documents = read_sources(data, say=lambda text: click.echo(text, err=True)) if data else embedded_documents()
    length = min(_LENGTH, config.context)
    rows = []
    for document in documents[:: max(1, len(documents) // (4 * _ROWS))]:
        ids = tokenizer.encode(document.text[: 32 * length].decode("utf-8", errors="ignore"))[:length]
        rows += [ids] if len(ids) == length else []
    if not rows:
        raise UsageError(f"No text of --data is as long as {length} tokens.")
    return torch.tensor(rows[:: max(1, len(rows) // _ROWS)][:_ROWS])
