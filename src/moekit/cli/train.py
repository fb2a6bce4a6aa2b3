"""`moekit train`."""

import time
from pathlib import Path

import click

from moekit.cli.verb import Verb


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit train mine.yaml
  moekit train mine.yaml --out runs/mine        again with the same --out goes on where it was stopped
\b
A file, mine.yaml (docs/train.md has one for every kind of model):
  model: {kind: lstm, vocab_size: 256, embedding_width: 128, widths: [256, 128]}
  data: [essays/]
  training: {tokens: 2000000, learning_rate: 0.002}""",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for everything.  [default: runs/train-<time>]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def train(config: Path, out: Path | None, as_json: bool, debug: bool) -> None:
    """Train one model as the YAML file CONFIG says, on its own objective.

    Decoders and LSTMs predict the next token, encoders masked tokens, XLNet tokens in random order, encoder-decoders
    spans cut out of the text; an n-gram model is counted. The model is saved in OUT/model, for `moekit evaluate`.
    """
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.core.formatting import duration_text
    from moekit.training import Interrupted, read_job
    from moekit.training import train as train_model

    job = read_job(config)
    folder = out or Path("runs") / time.strftime("train-%Y%m%d-%H%M%S")
    try:
        result = train_model(job, folder, progress=ProgressDisplay())
    except Interrupted:
        click.echo(f"What was done is kept; the same command with --out {folder} goes on.", err=True)
        raise
    if as_json:
        click.echo(result.model_dump_json(indent=2))
        return
    measured = "" if result.held_out_bits is None else f", {result.held_out_bits:.4f} bits per prediction held out"
    click.echo(f"{result.model}: trained for {duration_text(result.seconds)}{measured}")
