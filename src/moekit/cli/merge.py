"""`moekit merge`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.cli.converting import show_plan
from moekit.cli.option_types import WholeNumber
from moekit.cli.progress_display import ProgressDisplay
from moekit.cli.verb import Verb

if TYPE_CHECKING:
    from moekit.convert.merging.merge_conversion import MergePlan, MergeReport


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit merge experts.yaml --out merged
  moekit merge experts.yaml --out merged --dry-run --json
  moekit merge experts.yaml --out merged --train-router notes.txt""",
)
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option(
    "--seed",
    type=WholeNumber(0, 2**63 - 1),
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
@click.option("--train-steps", type=WholeNumber(1), default=200, show_default=True, help="Steps of that training.")
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
    from moekit.convert import verbs
    from moekit.convert.merging.merge_conversion import MergePlan

    options: dict[str, Any] = {
        "seed": seed,
        "fused": fused,
        "train_router": train_data,
        "train_steps": train_steps,
        "held_out": held_out,
        "report": report,
    }
    if dry_run:
        show_plan(lambda: verbs.plan_merge(config, options), out, _print_plan, as_json=as_json, refused=MergePlan)
        return
    command = shlex.join(["moekit", *sys.argv[1:]])
    found = verbs.merge(config, out, **options, command=command, progress=ProgressDisplay())
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        _print_report(found)


def _print_plan(plan: "MergePlan") -> None:
    from moekit.core.formatting import bytes_text

    for warning in plan.warnings:
        click.echo(f"Note: {warning}", err=True)
    if plan.output_bytes is not None and plan.peak_memory_bytes is not None:
        click.echo(f"{plan.architecture} of {plan.experts} experts, {plan.tensors} tensors")
        click.echo(f"on disk: {bytes_text(plan.output_bytes)} ({plan.output_bytes:,} bytes)")
        click.echo(f"memory at the peak, beside the interpreter: {bytes_text(plan.peak_memory_bytes)}")


def _print_report(report: "MergeReport") -> None:
    click.echo(f"{report.folder}: {report.architecture} of {report.experts} experts, gates {report.gate_mode}")
    if report.accuracy is not None:
        layers = " ".join(f"{value:.0%}" for value in report.accuracy)
        click.echo(f"tokens of prompts that go to their expert first, layer by layer: {layers}")
    if (trained := report.router_training) is not None:
        click.echo(
            f"routers trained: {trained.nats_before:.3f} to {trained.nats_after:.3f} nats a token; "
            f"all {trained.tensors_unchanged} other tensors are unchanged"
        )
