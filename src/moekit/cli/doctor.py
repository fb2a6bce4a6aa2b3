"""`moekit doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moekit.cli.verb import Verb

if TYPE_CHECKING:
    from moekit.doctor import Diagnosis, FileReading


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  moekit doctor
  moekit doctor --json
  moekit doctor model.gguf""",
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def doctor(file: Path | None, as_json: bool, debug: bool) -> None:
    """Show what this machine has for running models, which kernels serve, and what would make them faster.

    Memory and disk are measured, which takes a few seconds and a file of 128 MB in the folder for temporary files. With
    FILE it is measured how fast that is read, as experts are that `moekit generate --memory` leaves on disk.
    """
    import json
    from dataclasses import asdict

    from moekit.doctor import diagnose, read_file

    if file is not None:
        reading = read_file(file)
        click.echo(json.dumps(asdict(reading), indent=2)) if as_json else _print_reading(reading)
        return
    diagnosis = diagnose()
    click.echo(json.dumps(asdict(diagnosis), indent=2)) if as_json else _print(diagnosis)


def _print(diagnosis: "Diagnosis") -> None:
    from rich.console import Console
    from rich.table import Table

    from moekit.core.formatting import bytes_text

    available, total = bytes_text(diagnosis.memory_available_bytes), bytes_text(diagnosis.memory_bytes)
    disk = "not measured: no room for temporary files"
    if diagnosis.disk_bandwidth is not None:
        around = "" if diagnosis.disk_is_direct else " (of the page cache: this file system has no way around it)"
        disk = f"{bytes_text(diagnosis.disk_bandwidth)}/s read{around}"
    rows = {
        "processor": f"{diagnosis.cpu}, {diagnosis.cores} cores",
        "instruction sets": " ".join(diagnosis.instruction_sets) or "not known",
        "memory": f"{total}, {available} available",
        "read bandwidth": f"{bytes_text(diagnosis.read_bandwidth)}/s measured: no model decodes faster than this "
        "divided by the bytes of its active weights",
        "disk": disk,
        "GPU": ", ".join(f"{gpu.name} ({bytes_text(gpu.memory_bytes)})" for gpu in diagnosis.gpus) or "none",
        "torch": f"{diagnosis.torch}, {diagnosis.torch_threads} threads",
        "kernels": diagnosis.kernels,
        "system": diagnosis.system,
    }
    table = Table(box=None, show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    console = Console(highlight=False)
    console.print(table)
    for sentence in diagnosis.advice:
        console.print(f"! {sentence}", markup=False)


def _print_reading(reading: "FileReading") -> None:
    from rich.console import Console
    from rich.table import Table

    from moekit.core.formatting import bytes_text, printable

    threads = sorted({speed.threads for speed in reading.speeds})
    table = Table(box=None)
    table.add_column("read at a time")
    for count in threads:
        table.add_column(f"{count} thread{'s' if count > 1 else ''}", justify="right")
    for piece in sorted({speed.piece for speed in reading.speeds}):
        speeds = {speed.threads: speed.bytes_per_second for speed in reading.speeds if speed.piece == piece}
        table.add_row(bytes_text(piece), *(f"{bytes_text(speeds[count])}/s" for count in threads))
    console = Console(highlight=False)
    around = (
        "around the page cache" if reading.is_direct else "through the page cache: this file system has no way around"
    )
    console.print(f"{printable(reading.path)}, {bytes_text(reading.size)}, read {around}", markup=False)
    console.print(table)
