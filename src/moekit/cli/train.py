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
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.core.progress import Task
    from moekit.training import Interrupted
    from moekit.training.job import run_job

    def say(text: str) -> None:
        click.echo(text, err=True)

    with Task(ProgressDisplay(), "Training", unit="steps") as task:
        total, measured = 0, ""

        def on_start(steps: int) -> None:
            nonlocal total
            total = steps

        def on_step(report: "StepReport") -> None:
            nonlocal measured
            if report.bits_per_byte is not None:
                measured = f" · held out {report.bits_per_byte:.3f}"
                say(f"  step {report.step}: loss {report.loss:.3f}{measured}")
            for warning in report.warnings:
                say(f"  {warning}")
            task.set(report.step, total, f"loss {report.loss:.3f}{measured}")

        try:
            return run_job(job, folder, on_start, on_step, say)
        except Interrupted:
            say(f"What was done is kept; the same command with --out {folder} goes on.")
            raise
