"""`moekit chat`."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.chat_input import QUOTES, read_message
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
from moekit.cli.standard_streams import TextArgument
from moekit.cli.verb import Verb
from moekit.core.errors import MoekitError, UsageError, did_you_mean

if TYPE_CHECKING:
    from moekit.inference import Completion, Conversation, LoadedModel

_TEMPERATURE = 0.7
_COMMANDS = {
    "/help": "shows this",
    "/reset": "forgets the conversation",
    "/quit": "ends it, as Ctrl-D does",
    QUOTES: "begins a message of several lines, and ends it",
    "Ctrl-C": "stops an answer",
}


@click.command(
    cls=Verb,
    epilog=f"""\b
Examples:
  moekit chat ./my-model
  moekit chat model.gguf --system "Answer in one sentence." --temperature 0
  moekit chat ./qwen3 --template-variable enable_thinking=false
While it runs: /help says what can be typed; {QUOTES} begins and ends a message of several lines; /reset forgets the
conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer.""",
)
@click.argument("model", metavar="MODEL", required=False)
@MODEL_OPTION
@click.option("--system", type=TextArgument(), metavar="TEXT", help="What the model is told before everything else.")
@click.option(
    "--chat-template",
    "template_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Jinja template to use instead of the model's own.",
)
@click.option(
    "--template-variable",
    "variables",
    multiple=True,
    type=TextArgument(),
    metavar="NAME=VALUE",
    help="A variable of the chat template, such as enable_thinking=false; repeatable.",
)
@sampling_options(temperature=f"the model's own, else {_TEMPERATURE}")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as one JSON object on a line of its own.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def chat(
    model: str | None,
    named: str | None,
    system: str | None,
    template_file: Path | None,
    variables: tuple[str, ...],
    max_tokens: int | None,
    stop: tuple[str, ...],
    context: int | None,
    quantize: str | None,
    memory: str | None,
    as_json: bool,
    debug: bool,
    **sampling: Any,
) -> None:
    """Talk to MODEL, a folder, a hub id (owner/name) or a GGUF file, in the form that its chat template says.

    A message is a line; the answer comes as it is made, with its speed at the end. Earlier messages are not computed
    again. What the model's files say of sampling (generation_config.json) holds where no option is given.
    """
    import signal

    model, others = model_and_texts(named, model)
    if others:
        raise click.UsageError(f"There is no place for {others[0]!r}: chat reads messages from standard input")
    # Ctrl-C is part of the conversation; a scheduler's stop is not.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with garbage_collection_paused():
        read_sampling(sampling)  # what is wrong, before any work
        given = dict(map(_variable, variables))
        template = None if template_file is None else _read_template(template_file)
        loaded = load_to_generate(model, context, quantize, memory)
    from moekit.inference import ChatTemplate, Conversation, GenerationOptions

    if template is not None:
        loaded = replace(loaded, chat_template=ChatTemplate(template, loaded.special_texts))
    for sentence in loaded.sampling.left_out:
        click.echo(sentence, err=True)
    drawn = read_sampling(sampling, **{"temperature": _TEMPERATURE, **loaded.sampling.options})
    options = GenerationOptions(max_tokens=max_tokens, stop=stop, end_tokens=loaded.end_tokens, sampling=drawn)
    _talk(Conversation(loaded, options, system, given), loaded, as_json=as_json)


def _talk(conversation: "Conversation", loaded: "LoadedModel", *, as_json: bool) -> None:
    """Answer messages until there are no more. Ctrl-C drops the message that is being written, or the answer."""
    while True:
        try:
            message = read_message()
            if message is None or message.strip() == "/quit":
                return
            _take(message, conversation, loaded, as_json=as_json)
        except MoekitError as error:
            click.echo(str(error), err=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():  # whoever stops a program that reads a file means all of it
                raise
            click.echo()


def _take(message: str, conversation: "Conversation", loaded: "LoadedModel", *, as_json: bool) -> None:
    """Do what a message asks for: a command, or an answer."""
    command = message.strip()
    if command == "/help":
        for name, meaning in _COMMANDS.items():
            click.echo(f"{name:<8}{meaning}", err=True)
    elif command == "/reset":
        conversation.reset()
        click.echo("Forgotten.", err=True)
    elif sys.stdin.isatty() and re.fullmatch("/[a-z]+", command):
        raise UsageError(f"There is no {command}: {did_you_mean(command, [name for name in _COMMANDS if '/' in name])}")
    elif command:
        _turn(conversation, message, loaded.runner.context, as_json=as_json)


def _turn(conversation: "Conversation", message: str, context: int, *, as_json: bool) -> None:
    """Answer a message, and say how fast and what cut the answer off.

    What the context has no room for is said, and the conversation goes on.
    """
    try:
        completion = _answer(conversation, message, stream=not as_json)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
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
    if (cut := cut_off(completion, context)) is not None:
        is_full = completion.prompt_tokens + completion.completion_tokens >= context
        click.echo(f"{cut} /reset forgets the conversation." if is_full else cut, err=True)


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


def _read_template(file: Path) -> str:
    from moekit.core.validation import read_text

    return read_text(file)


def _variable(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE: a value in JSON, or text; True, False and None are taken as in Python."""
    import json

    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--template-variable {text!r} is not like enable_thinking=false, a name and a value.")
    words = {"True": True, "False": False, "None": None}
    try:
        return name, words[value] if value in words else json.loads(value)
    except (ValueError, RecursionError):
        return name, value
