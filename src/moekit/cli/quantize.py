"""`moekit quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moekit.cli.converting import show_plan
from moekit.cli.option_types import BlockTypeName
from moekit.cli.progress_display import ProgressDisplay
from moekit.cli.verb import Verb
from moekit.kernels.packed.type_mixes import TYPE_MIXES

if TYPE_CHECKING:
    from moekit.convert.export.gguf_export import QuantizationPlan


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit quantize ./mixtral --type q4_k --out mixtral-q4_k.gguf
  moekit quantize ./mixtral --type Q4_K_M --out mixtral-Q4_K_M.gguf
  moekit quantize ./llama --type q8_0 --out llama.gguf --dry-run""",
)
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new GGUF file.")
@click.option(
    "--type",
    "kind",
    type=BlockTypeName(TYPE_MIXES),
    default="q4_k",
    show_default=True,
    help="Of the matrices: one type, or a mix of llama.cpp's (…_s, _m, _l).",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and what stands in the way; read no weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def quantize(model: str, out: Path, kind: str, dry_run: bool, as_json: bool, debug: bool) -> None:
    """Write a model as a GGUF file that moekit and llama.cpp run.

    MODEL is a folder with a decoder, a hub id (owner/name), or a GGUF file. Norms, biases and routers stay f32; the
    head of a model of few bits is q6_k. Memory does not grow with the model.
    """
    from moekit.convert import verbs

    if dry_run:
        show_plan(lambda: verbs.plan_quantize(model, kind), out, _print_plan, as_json=as_json)
        return
    report = verbs.quantize(model, out, kind, progress=ProgressDisplay())
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        _print(report, "holds")


def _print_plan(plan: "QuantizationPlan") -> None:
    _print(plan, "will hold")


def _print(plan: "QuantizationPlan", verb: str) -> None:
    from moekit.core.formatting import bytes_text, parameters_text

    types = ", ".join(f"{count} {name}" for name, count in plan.tensors.items())
    click.echo(
        f"{plan.out} {verb} {plan.architecture}, {parameters_text(plan.params_total)} parameters, "
        f"{bytes_text(plan.output_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    )
    click.echo(f"tensors: {types}")
    for note in plan.notes:
        click.echo(note, err=True)
