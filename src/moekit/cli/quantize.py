"""`moekit quantize`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moekit.cli.converting import WritingBar
from moekit.core.errors import MoekitError
from moekit.kernels.packed.block_types import BLOCK_TYPES_BY_NAME

if TYPE_CHECKING:
    from moekit.convert.export.gguf_export import QuantizationPlan

_FAILED_BEFORE_WORK = 2


@click.command(
    epilog="""\b
Examples:
  moekit quantize ./mixtral --type q4_k --out mixtral-q4_k.gguf
  moekit quantize ./llama --type q8_0 --out llama.gguf --dry-run"""
)
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new GGUF file.")
@click.option(
    "--type", "kind", type=click.Choice(BLOCK_TYPES_BY_NAME), default="q4_k", show_default=True, help="Of the matrices."
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and what stands in the way; read no weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def quantize(model: str, out: Path, kind: str, dry_run: bool, as_json: bool, debug: bool) -> None:
    """Write a model as a GGUF file that moekit and llama.cpp run.

    MODEL is a folder with a decoder, or a hub id (owner/name). Norms, biases and routers stay f32; the head of a 4-bit
    model is q6_k. Memory does not grow with the model.
    """
    from moekit.convert.export.gguf_export import plan_quantization
    from moekit.models import find

    try:
        quantization = plan_quantization(find(model), BLOCK_TYPES_BY_NAME[kind])
    except MoekitError as error:
        if not (dry_run and as_json):
            raise
        click.echo(json.dumps({"problems": [str(error)]}, indent=2))
        sys.exit(error.exit_status)
    if dry_run:
        plan = quantization.plan(out)
    else:
        with WritingBar(sum(tensor.size for tensor in quantization.tensors)) as count:
            plan = quantization.run(out, count)
    if as_json:
        click.echo(plan.model_dump_json(indent=2))
    else:
        _print(plan, written=not dry_run)
    if dry_run and plan.problems:
        sys.exit(_FAILED_BEFORE_WORK)


def _print(plan: "QuantizationPlan", *, written: bool) -> None:
    from moekit.core.formatting import bytes_text, parameters_text

    types = ", ".join(f"{count} {name}" for name, count in plan.tensors.items())
    verb = "holds" if written else "will hold"
    click.echo(
        f"{plan.out} {verb} {plan.architecture}, {parameters_text(plan.params_total)} parameters, "
        f"{bytes_text(plan.output_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    )
    click.echo(f"tensors: {types}")
    for note in plan.notes:
        click.echo(note, err=True)
    for problem in plan.problems:
        click.echo(f"Problem: {problem}", err=True)
