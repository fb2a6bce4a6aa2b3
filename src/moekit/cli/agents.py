"""`moekit agents`: its three verbs."""

import codecs
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.option_types import OneOf, WholeNumber
from moekit.cli.verb import Verbs
from moekit.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import socket

    from moekit.agents import AgentsConfig, Answer
    from moekit.agents.evaluate import AgentsEvaluation, Match
    from moekit.agents.outcome.answer import Spent
    from moekit.agents.outcome.trace import Trace
    from moekit.core.messages import Message

_CONFIG = click.argument("config", metavar="CONFIG", type=click.Path(path_type=Path))
_STRATEGY = click.option(
    "--strategy", metavar="NAME", help="Of a strategy or member.  [default: as the configuration says]"
)
_REPLAY = click.option("--replay", is_flag=True, help="Answer from the cache alone: no call is made.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
_DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error.")


@click.group(
    cls=Verbs,
    epilog="""\b
Examples:
  moekit agents ask agents.yaml "Why is the sky blue?"
  moekit agents serve agents.yaml --port 8000
  moekit agents evaluate agents.yaml --data questions.jsonl
docs/agents.md has the configuration.""",
)
def agents() -> None:
    """Let whole models answer together: local ones, and any behind an OpenAI-compatible server.

    CONFIG is a YAML file with members and strategies.
    """


@agents.command(
    epilog="""\b
Examples:
  moekit agents ask agents.yaml "Why is the sky blue?"
  moekit agents ask agents.yaml - --strategy cheap --trace answer.html < question.txt
  moekit agents ask agents.yaml "Why is the sky blue?" --replay --json"""
)
@_CONFIG
@click.argument("question")
@_STRATEGY
@click.option("--system", metavar="TEXT", help="What the models are told before the question.")
@click.option(
    "--trace",
    "trace_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write who was asked what, when, for how much, and what failed: .json, or .html to read.",
)
@_REPLAY
@_JSON
@_DEBUG
def ask(
    config: Path,
    question: str,
    strategy: str | None,
    system: str | None,
    trace_file: Path | None,
    replay: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Answer QUESTION, - for standard input. The answer comes as it is made; then what failed, and what it cost."""
    import asyncio

    if trace_file is not None and trace_file.suffix not in (".json", ".html"):
        raise UsageError(f"--trace {trace_file}: the name must end in .json or .html.")
    settings = _read(config, strategy, replay=replay)
    messages = _messages(question, system)
    from moekit.agents import AnswerFailed

    try:
        answer = asyncio.run(_answer(settings, messages, strategy, stream=not as_json))
    except AnswerFailed as failed:
        _write_trace(trace_file, failed.trace)
        _print_figures(failed.spent, failed.trace)
        raise
    _write_trace(trace_file, answer.trace)
    if as_json:
        _print_json(answer)
    else:
        _print_figures(answer, answer.trace)


@agents.command(
    epilog="""\b
Examples:
  moekit agents serve agents.yaml
  moekit agents serve agents.yaml --host 0.0.0.0 --port 80"""
)
@_CONFIG
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=WholeNumber(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@_DEBUG
def serve(config: Path, host: str, port: int, debug: bool) -> None:
    """Serve every strategy and member of CONFIG as a model name of the OpenAI API, until Ctrl-C."""
    import asyncio

    from moekit.serve.run import bind

    settings = _read(config)
    with bind(host, port) as bound:
        asyncio.run(_serve(settings, host, bound))


@agents.command(
    epilog="""\b
Examples:
  moekit agents evaluate agents.yaml --data questions.jsonl --match number
  moekit agents evaluate agents.yaml --data chats.jsonl --judge gpt --strategy cheap"""
)
@_CONFIG
@click.option(
    "--data",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='JSON lines {"question": …, "answer": …}, or with "messages"; a judge needs no "answer".',
)
@_STRATEGY
@click.option(
    "--match",
    type=OneOf(("exact", "number", "choice")),
    help="What counts of an answer: its whole text, its last number, or its letter.  [default: exact]",
)
@click.option("--judge", metavar="NAME", help="Who compares two answers instead, in both orders.")
@_JSON
@_DEBUG
def evaluate(
    config: Path, data: Path, strategy: str | None, match: "Match | None", judge: str | None, as_json: bool, debug: bool
) -> None:
    """Measure a strategy against each of its members alone, at equal cost.

    Each member gets as many samples of a question as the strategy's answer cost on average. With a cache, an evaluation
    that was broken off goes on where it was.
    """
    import asyncio

    if match is not None and judge is not None:
        raise UsageError("--match and --judge exclude each other; give one of them.")
    settings = _read(config, strategy, judge)
    from moekit.agents.evaluate import evaluate as evaluate_agents
    from moekit.agents.evaluate import read_questions
    from moekit.cli.progress_display import ProgressDisplay

    questions = read_questions(data, None if judge is not None else match or "exact")
    result = asyncio.run(
        evaluate_agents(
            settings, questions, name=strategy, match=match or "exact", judge=judge, progress=ProgressDisplay()
        )
    )
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        _print_evaluation(result)


def _read(path: Path, *names: str | None, replay: bool = False) -> "AgentsConfig":
    """Read the configuration; raise UsageError where it is wrong or lacks one of the names."""
    from moekit.agents import read_agents

    config = read_agents(path, replay=replay)
    for name in names:
        if name is not None and name not in config.names:
            raise UsageError(f"{path}: there is no strategy or member {name!r}: {did_you_mean(name, config.names)}")
    return config


def _messages(question: str, system: str | None) -> "list[Message]":
    """Make the conversation; read the question from standard input where it is -. Raise UsageError without one."""
    from moekit.core.messages import Message

    if question == "-":
        if sys.stdin is None:
            raise UsageError("The question is -, but standard input is closed.")
        question = _decoded("The question", sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8))
    for what, text in (("QUESTION", question), ("--system", system or "")):
        _decoded(what, text.encode("utf-8", "surrogatepass"))
    if not question.strip():
        raise UsageError("The question is empty.")
    told = [] if system is None else [Message(role="system", content=system)]
    return [*told, Message(role="user", content=question)]


def _decoded(what: str, data: bytes) -> str:
    """Decode what a user gave; raise UsageError where it is in another encoding."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8: {error.reason} at byte {error.start}.") from error


async def _answer(config: "AgentsConfig", messages: "list[Message]", name: str | None, *, stream: bool) -> "Answer":
    from moekit.agents import Engine

    shown = False

    async def show(piece: str) -> None:
        nonlocal shown
        shown = True
        click.echo(piece, nl=False)
        sys.stdout.flush()

    try:
        async with Engine(config) as engine:
            await engine.check()
            return await engine.answer(messages, name, on_text=show if stream else None)
    finally:
        if shown:
            click.echo()


def _write_trace(path: Path | None, trace: "Trace") -> None:
    from moekit.core.files import write_text

    if path is None:
        return
    if path.suffix == ".html":
        from moekit.agents.outcome.trace_page import trace_page

        write_text(path, trace_page(trace))
    else:
        write_text(path, trace.model_dump_json(indent=2) + "\n")


def _print_json(answer: "Answer") -> None:
    import json
    from dataclasses import asdict

    shown: dict[str, Any] = {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "unsettled": asdict(answer.unsettled),
        "cost": answer.cost,
        "unsettled_cost": answer.unsettled_cost,
        "seconds": answer.trace.seconds,
        "failures": answer.failures,
        "incomplete": answer.incomplete,
    }
    click.echo(json.dumps(shown, indent=2))


def _print_figures(spent: "Spent", trace: "Trace") -> None:
    """Print what failed and is missing, a line each, and `7 calls, 1 from the cache · 812 tokens read, … · 3.2 s`."""
    from moekit.core.formatting import duration_text

    for failure in trace.failures:
        click.echo(f"Failed: {failure}", err=True)
    for incomplete in trace.incomplete:
        click.echo(f"Incomplete: {incomplete}", err=True)
    cached = sum(call.cached for call in trace.calls)
    calls = f"{len(trace.calls)} call{'s' * (len(trace.calls) != 1)}"
    parts = [calls + (f", {cached} from the cache" if cached else "")]
    parts.append(f"{spent.usage.prompt_tokens} tokens read, {spent.usage.completion_tokens} written")
    if spent.unsettled.total_tokens:
        parts.append(f"up to {spent.unsettled.total_tokens} more in calls that never told")
    if spent.cost:
        parts.append(f"cost {spent.cost:.4g}")
    click.echo(" · ".join([*parts, duration_text(trace.seconds)]), err=True)


async def _serve(config: "AgentsConfig", host: str, bound: "socket.socket") -> None:
    from moekit.agents import Engine
    from moekit.serve.app import create_app
    from moekit.serve.run import hosts_of, is_loopback, server_of, url_of

    async with Engine(config) as engine:
        await engine.check()
        click.echo(f"Serving {', '.join(config.names)} on {url_of(bound)}; Ctrl-C stops it.", err=True)
        if not is_loopback(host):
            click.echo(f"Warning: whoever reaches {host} can ask without a key, and you pay for the answers.", err=True)
        await server_of(create_app(engine.models, hosts=hosts_of(host))).serve(sockets=[bound])


def _print_evaluation(result: "AgentsEvaluation") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    headings, rows = result.table()
    table = Table(box=None)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    # In a file or a pipe there is no edge to break lines at.
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    for reason in result.reasons:
        click.echo(f"Failed: {reason}", err=True)
