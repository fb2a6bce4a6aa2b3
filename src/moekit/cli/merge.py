"""`moekit merge`."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.core.errors import MoekitError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from moekit.convert.merging.merge_checks import Problems
    from moekit.convert.merging.merge_plan import Merge
    from moekit.convert.merging.routing_report import RoutingReport, Text


@click.command(
    epilog="""\b
Examples:
  moekit merge experts.yaml --out merged
  moekit merge experts.yaml --out merged --dry-run --json
  moekit merge experts.yaml --out merged --train-router notes.txt"""
)
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of drawn gates, noise and router training.",
)
@click.option("--fused", is_flag=True, help="All experts of a layer in two tensors, which transformers 5 alone reads.")
@click.option(
    "--dry-run", is_flag=True, help="Say what it would take and what is wrong; read no weight, write nothing."
)
@click.option(
    "--train-router",
    "train_data",
    multiple=True,
    metavar="DATA",
    help="Train only the routers on this text (a file, folder or hub id); repeatable.",
)
@click.option("--train-steps", type=click.IntRange(1), default=200, show_default=True, help="Steps of that training.")
@click.option("--held-out", multiple=True, metavar="DATA", help="Further text for the routing report; repeatable.")
@click.option(
    "--report/--no-report", default=True, help="Whether to run prompts through the result and say where they go."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def merge(
    config: Path,
    out: Path,
    seed: int,
    fused: bool,
    dry_run: bool,
    train_data: tuple[str, ...],
    train_steps: int,
    held_out: tuple[str, ...],
    report: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Make a mixture of experts of several fine-tunes of one dense model.

    CONFIG.yaml has the keys of mergekit-moe: base_model, experts (source_model, positive_prompts, ...), gate_mode,
    dtype, experts_per_token, shared_experts, architecture; and backbone (base or average).
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if dry_run:
        _dry_run(config, out, seed, fused, bool(train_data), as_json, console)
        return
    planned, problems = _plan(config, out, seed, fused)
    for warning in problems.warnings:
        console.print(f"Note: {warning}", markup=False)
    if planned is None:
        raise UsageError(" ".join(problems.blocking))
    texts = _texts(held_out, console)
    planned, trained = _train(planned, train_data, train_steps, console)
    result = _write(planned, out, texts, report, trained, console)
    unchanged = _prove(planned, out) if train_data else None
    _print(planned, out, result, trained, unchanged, as_json)


def _plan(config: Path, out: Path, seed: int, fused: bool) -> "tuple[Merge | None, Problems]":
    """The plan, and what is wrong with it and with where it shall go."""
    from moekit.checkpoint.write_weights import check_replaceable
    from moekit.convert.merging.merge_checks import Problems, plan_merge
    from moekit.convert.merging.merge_config import read_merge_config

    try:
        planned, problems = plan_merge(read_merge_config(config), seed=seed, fused=fused)
    except MoekitError as error:
        planned, problems = None, Problems(blocking=[str(error)])
    try:
        check_replaceable(out)
    except MoekitError as error:
        problems.blocking.append(f"--out: {error}")
    return (None if problems.blocking else planned), problems


def _dry_run(config: Path, out: Path, seed: int, fused: bool, train: bool, as_json: bool, console: "Console") -> None:
    from moekit.convert.merging.merge_checks import forecast
    from moekit.core.formatting import bytes_text

    planned, problems = _plan(config, out, seed, fused)
    found = forecast(planned, train_routers=train) if planned else None
    if as_json:
        numbers = ("output_bytes", "peak_memory_bytes", "tensors")
        values: dict[str, Any] = {name: getattr(found, name) if found else None for name in numbers}
        values |= {"architecture": planned.output.name if planned else None}
        click.echo(json.dumps(values | {"problems": problems.blocking, "warnings": problems.warnings}, indent=2))
    elif planned and found:
        click.echo(f"{planned.output.name} of {len(planned.experts)} experts, {found.tensors} tensors")
        click.echo(f"on disk: {bytes_text(found.output_bytes)} ({found.output_bytes:,} bytes)")
        click.echo(f"memory at the peak, beside the interpreter: {bytes_text(found.peak_memory_bytes)}")
    for line in () if as_json else (*problems.blocking, *problems.warnings):
        console.print(line, markup=False)
    if problems.blocking:
        sys.exit(UsageError.exit_status)


def _texts(sources: tuple[str, ...], console: "Console") -> "list[Text]":
    """Held-out text for the report, a piece a document."""
    from moekit.convert.merging.routing_report import Text

    if not sources:
        return []
    from moekit.data import read_sources

    documents = read_sources(sources, say=console.print)
    return [Text(f"held out: {document.domain}", document.text.decode("utf-8")) for document in documents]


def _train(
    planned: "Merge", sources: tuple[str, ...], steps: int, console: "Console"
) -> "tuple[Merge, dict[str, Any] | None]":
    """The merge with trained routers, and what to say of the training."""
    if not sources:
        return planned, None
    from moekit.convert.merging.router_training import RouterTraining, train_routers
    from moekit.data import read_sources

    documents = read_sources(sources, say=console.print)
    with _progress(console, "Training the routers", steps) as update:
        trained = train_routers(
            planned, documents, RouterTraining(steps=steps), on_step=lambda step, loss: update(step)
        )
    facts = {"steps": steps, "data": list(sources), "nats_before": trained.before, "nats_after": trained.after}
    return planned.with_routers(trained.tensors, trained.key), facts


def _write(
    planned: "Merge",
    out: Path,
    texts: "list[Text]",
    report: bool,
    trained: dict[str, Any] | None,
    console: "Console",
) -> "RoutingReport | None":
    from moekit.convert.merging.merge_checks import forecast
    from moekit.convert.merging.write_merge import Options, write_merge

    said = None
    if trained is not None:
        said = (
            f"then {trained['steps']} steps of training on {', '.join(trained['data'])}, all else frozen: "
            f"{trained['nats_before']:.3f} to {trained['nats_after']:.3f} nats a token"
        )
    written = 0
    with _progress(console, "Writing", forecast(planned).output_bytes) as update:

        def count(size: int) -> None:
            nonlocal written
            written += size
            update(written)

        options = Options(
            command=shlex.join(["moekit", *sys.argv[1:]]), held_out=texts, report=report, trained=said, on_bytes=count
        )
        return write_merge(planned, out, options)


@contextmanager
def _progress(console: "Console", what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; gives what sets how far it is."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def _prove(planned: "Merge", out: Path) -> int:
    """How many written tensors beside routers are the untrained merge's, bit for bit; all, or it is an error."""
    from moekit.convert.merging.router_training import check_only_routers

    return check_only_routers(planned, out)


def _print(
    planned: "Merge",
    out: Path,
    report: "RoutingReport | None",
    trained: dict[str, Any] | None,
    unchanged: int | None,
    as_json: bool,
) -> None:
    if as_json:
        values = {
            "folder": str(out),
            "architecture": planned.output.name,
            "gate_mode": planned.config.gate_mode,
            "seed": planned.seed,
            "accuracy": report.accuracy if report else None,
            "router_training": None if trained is None else trained | {"tensors_unchanged": unchanged},
        }
        click.echo(json.dumps(values, indent=2))
        return
    click.echo(f"{out}: {planned.output.name} of {len(planned.experts)} experts, gates {planned.config.gate_mode}")
    if report is not None and report.accuracy is not None:
        layers = " ".join(f"{value:.0%}" for value in report.accuracy)
        click.echo(f"tokens of prompts that go to their expert first, layer by layer: {layers}")
    if trained is not None:
        click.echo(
            f"routers trained: {trained['nats_before']:.3f} to {trained['nats_after']:.3f} nats a token; "
            f"all {unchanged} other tensors are unchanged"
        )
