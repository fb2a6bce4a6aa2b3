"""`moekit generate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.generate_and_chat import (
    MODEL_OPTION,
    cut_off,
    figures,
    garbage_collection_paused,
    load_to_generate,
    model_and_texts,
    read_sampling,
    sampling_options,
)
from moekit.cli.placement_table import placement_json, reading_figures
from moekit.cli.standard_streams import TextArgument, decode_text
from moekit.cli.verb import Verb
from moekit.core.energy import EnergyMeter
from moekit.core.errors import UsageError

if TYPE_CHECKING:
    from moekit.inference import Completion, LoadedModel, SamplingOptions


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit generate ./my-model "Once upon a time" --max-tokens 100
  moekit generate model.gguf --prompt-file question.txt --temperature 0.8 --min-p 0.05 --seed 1
  echo "The capital of France is" | moekit generate ./my-model --prompt-file - --json""",
)
@click.argument("model", metavar="MODEL", required=False)
@click.argument("text", required=False, type=TextArgument())
@MODEL_OPTION
@click.option(
    "-p",
    "--prompt",
    "prompts",
    multiple=True,
    type=TextArgument(),
    metavar="TEXT",
    help="What to continue; repeatable, for a batch.",
)
@click.option("--prompt-file", metavar="FILE", help="A file with the prompt, less a last newline; - is standard input.")
@sampling_options(temperature="0")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def generate(
    model: str | None,
    text: str | None,
    named: str | None,
    prompts: tuple[str, ...],
    prompt_file: str | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    context: int | None,
    quantize: str | None,
    memory: str | None,
    as_json: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Let MODEL continue TEXT.

    MODEL is a folder, a hub id (owner/name) or a GGUF file. The text comes as it is made, and at the end its speed and
    how long the first token took, counted from the start of the command. Several prompts are continued together.
    """
    model, texts = model_and_texts(named, model, text)
    given = _prompts((*texts, *prompts), prompt_file)
    with garbage_collection_paused():
        drawn = read_sampling(sampling)  # what is wrong, before any work
        loaded = load_to_generate(model, context, quantize, memory, len(given))
    meter = EnergyMeter()
    completions, before = _run(loaded, given, drawn, max_tokens, stop, stream=not as_json and len(given) == 1)
    if as_json:
        _print_json(completions, before, loaded, meter.joules())
    else:
        _print(completions, before)
        for line in [] if (counts := loaded.streaming_counts) is None else reading_figures(counts):
            click.echo(line, err=True)
        if (joules := meter.joules()) is not None:
            click.echo(f"{joules / sum(one.completion_tokens for one in completions):.2f} J per token", err=True)
    for number, completion in enumerate(completions, start=1):
        if (cut := cut_off(completion, loaded.runner.context)) is not None:
            click.echo(f"{number}: {cut}" if len(completions) > 1 else cut, err=True)


def _prompts(prompts: tuple[str, ...], prompt_file: str | None) -> list[str]:
    """Collect the prompts; raise UsageError where there are none, or both kinds."""
    if bool(prompts) == (prompt_file is not None):
        raise UsageError("Give TEXT, --prompt or --prompt-file.")
    if prompt_file is None:
        return list(prompts)
    try:
        data = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {prompt_file}: {error.strerror}.") from error
    what = "Standard input" if prompt_file == "-" else prompt_file
    return [decode_text(data, what).removesuffix("\n").removesuffix("\r")]


def _run(
    loaded: "LoadedModel",
    prompts: list[str],
    sampling: "SamplingOptions",
    max_tokens: int | None,
    stop: tuple[str, ...],
    *,
    stream: bool,
) -> "tuple[list[Completion], float]":
    """Generate the completions, and measure the seconds that had passed before generation began."""
    import time
    from dataclasses import asdict

    from moekit.cli.progress_display import ProgressDisplay
    from moekit.core.hardware import process_started
    from moekit.inference import generate as generate_text

    def show(_: int, piece: str) -> None:
        click.echo(piece, nl=False)
        sys.stdout.flush()

    before = time.perf_counter() - process_started()
    completions = generate_text(
        loaded,
        prompts,
        max_tokens=max_tokens,
        stop=stop,
        **asdict(sampling),
        on_text=show if stream else None,
        progress=ProgressDisplay(),
    )
    return completions, before


def _print_json(completions: "list[Completion]", before: float, loaded: "LoadedModel", joules: float | None) -> None:
    import json
    from dataclasses import asdict

    shown = [asdict(one) | {"time_to_first_token_s": before + one.time_to_first_token_s} for one in completions]
    whole = shown[0] if len(shown) == 1 else {"completions": shown}
    if loaded.placed is not None:
        whole |= {"memory": placement_json(loaded.placed, loaded.streaming_counts)}
    if joules is not None:
        whole |= {"joules": joules, "joules_per_token": joules / sum(one.completion_tokens for one in completions)}
    click.echo(json.dumps(whole, indent=2))


def _print(completions: "list[Completion]", before: float) -> None:
    for number, completion in enumerate(completions, start=1):
        if len(completions) > 1:
            click.echo(f"==> {number} <==")
            click.echo(completion.text)
        else:
            click.echo()  # the text has been shown
        click.echo(figures(completion, before + completion.time_to_first_token_s), err=True)
