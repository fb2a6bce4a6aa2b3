"""`moekit chat`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.generate_and_chat import (
    figures,
    garbage_collection_paused,
    load_to_generate,
    read_sampling,
    sampling_options,
)
from moekit.core.errors import UsageError

if TYPE_CHECKING:
    from moekit.inference import Completion, Conversation


@click.command(
    epilog="""\b
Examples:
  moekit chat ./my-model
  moekit chat model.gguf --system "Answer in one sentence." --temperature 0
While it runs: /reset forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer."""
)
@click.argument("model")
@click.option("--system", metavar="TEXT", help="What the model is told before everything else.")
@sampling_options(temperature=0.7)
@click.option("--json", "as_json", is_flag=True, help="Print each answer as one JSON object on a line of its own.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def chat(
    model: str,
    system: str | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    context: int | None,
    quantize: str | None,
    as_json: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Talk to MODEL, a folder, a hub id (owner/name) or a GGUF file, in the form that its chat template says.

    A message is a line; the answer comes as it is made, with its speed at the end. Earlier messages are not computed
    again.
    """
    import signal

    # Ctrl-C is part of the conversation; a scheduler's stop is not.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with garbage_collection_paused():
        drawn = read_sampling(sampling)  # what is wrong, before any work
        loaded = load_to_generate(model, context, quantize)
    from moekit.inference import Conversation, GenerationOptions

    options = GenerationOptions(max_tokens=max_tokens, stop=stop, end_tokens=loaded.end_tokens, sampling=drawn)
    conversation = Conversation(loaded, options, system)
    while (line := _read()) is not None:
        match line.strip():
            case "":
                continue
            case "/quit":
                break
            case "/reset":
                conversation.reset()
                click.echo("Forgotten.", err=True)
            case _:
                _turn(conversation, line, as_json=as_json)


def _read() -> str | None:
    """Read the next line; None at the end. Ctrl-C while writing gives an empty one."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    import contextlib

    with contextlib.suppress(ImportError):  # not on every system; gives the arrow keys a meaning
        import readline  # noqa: F401
    try:
        return input("> ")
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:
        click.echo()
        return ""


def _turn(conversation: "Conversation", message: str, *, as_json: bool) -> None:
    """Answer a message. What the context has no room for is said, and the conversation goes on."""
    try:
        completion = _answer(conversation, message, stream=not as_json)
    except KeyboardInterrupt:
        click.echo()
        click.echo("Stopped.", err=True)
        return
    except UsageError as error:
        click.echo(f"{error} /reset forgets the conversation.", err=True)
        return
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(completion)))
    else:
        click.echo()
    click.echo(figures(completion, completion.time_to_first_token_s), err=True)


def _answer(conversation: "Conversation", message: str, *, stream: bool) -> "Completion":
    from moekit.cli.progress_display import ProgressDisplay
    from moekit.core.progress import Task

    with Task(ProgressDisplay(), "Prompt", unit="tokens") as task:

        def say(piece: str) -> None:
            task.finish()
            if stream:
                click.echo(piece, nl=False)
                sys.stdout.flush()

        return conversation.answer(message, say, task.advance)
