"""`moekit train`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moekit.training import StepReport


@click.command(
    epilog="""\b
Examples:
  moekit train mine.yaml
  moekit train mine.yaml --out runs/mine        again with the same --out goes on where it was stopped
\b
A file, mine.yaml (docs/train.md has one for every kind of model):
  model: {kind: lstm, vocab_size: 256, embedding_width: 128, widths: [256, 128]}
  data: [essays/]
  training: {tokens: 2000000, learning_rate: 0.002}"""
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
    from moekit.training.job import read_job

    job = read_job(config)
    folder = out or Path("runs") / time.strftime("train-%Y%m%d-%H%M%S")
    result = _run(job, folder)
    if as_json:
        click.echo(result.model_dump_json(indent=2))
        return
    from moekit.core.formatting import duration_text

    measured = "" if result.held_out_bits is None else f", {result.held_out_bits:.4f} bits per prediction held out"
    click.echo(f"{result.model}: trained for {duration_text(result.seconds)}{measured}")


def _run(job: Any, folder: Path) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from moekit.training import Interrupted
    from moekit.training.job import run_job

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("Training"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=console, transient=True) as progress:
        task = progress.add_task("", total=None, figures="")
        measured = ""

        def on_step(report: "StepReport") -> None:
            nonlocal measured
            if report.bits_per_byte is not None:
                measured = f" · held out {report.bits_per_byte:.3f}"
                console.print(f"  step {report.step}: loss {report.loss:.3f}{measured}", markup=False)
            for warning in report.warnings:
                console.print(f"  {warning}", markup=False)
            progress.update(task, completed=report.step, figures=f"loss {report.loss:.3f}{measured}")

        try:
            return run_job(job, folder, lambda steps: progress.update(task, total=steps), on_step, console.print)
        except Interrupted:
            console.print(f"What was done is kept; the same command with --out {folder} goes on.", markup=False)
            raise
