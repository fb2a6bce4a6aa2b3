"""`moekit plan`."""

from typing import TYPE_CHECKING

import click

from moekit.cli.verb import Verb

if TYPE_CHECKING:
    from moekit.planning import ModelPlan


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit plan mixtral-8x7b
  moekit plan ./my-model --json
  moekit plan --list                what presets there are""",
)
@click.argument("model", required=False)
@click.option("--list", "list_presets", is_flag=True, help="List the presets with their sources.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def plan(model: str | None, list_presets: bool, as_json: bool, debug: bool) -> None:
    """Tell what MODEL needs, before anything is downloaded: parameters, bytes by type, key-value cache.

    MODEL is the name of a preset, a folder with a config.json, a GGUF file, or a hub id (owner/name); weights are not
    looked at.
    """
    if list_presets == (model is not None):
        raise click.UsageError("Name a model, or give --list.")
    if list_presets:
        _list(as_json)
        return
    assert model is not None
    from moekit.planning import plan as plan_model

    described = plan_model(model)
    if as_json:
        click.echo(described.model_dump_json(indent=2))
    else:
        _print(described)


def _list(as_json: bool) -> None:
    import json

    from moekit.families import presets

    if as_json:
        click.echo(json.dumps({name: found.source for name, found in presets().items()}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "source", box=None, header_style="bold")
    for name, found in presets().items():
        table.add_row(name, found.source)
    Console(highlight=False).print(table)


def _print(described: "ModelPlan") -> None:
    from rich.console import Console
    from rich.table import Table

    from moekit.core.formatting import bytes_text, parameters_text

    console = Console(highlight=False)
    console.print(f"[bold]{described.model}[/]" + (f"  ({described.source})" if described.source else ""))
    table = Table(box=None, show_header=False)
    table.add_row("parameters", parameters_text(described.params_total))
    share = f" ({described.active_share:.1%})" if described.active_share < 1 else ""
    table.add_row("active for one token", parameters_text(described.params_active) + share)
    for part, size in described.params_by_part.items():
        table.add_row(f"  {part}", parameters_text(size))
    for kind, size in described.weight_bytes.items():
        table.add_row(f"weights in {kind}", bytes_text(size))
    if described.kv_cache_bytes_per_token is not None:
        table.add_row("key-value cache a token", bytes_text(described.kv_cache_bytes_per_token))
    console.print(table)
