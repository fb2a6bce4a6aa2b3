"""What `moekit upcycle` and `moekit split` share: layers as an argument, the dry run, progress, and the report."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.core.errors import MoekitError

if TYPE_CHECKING:
    from moekit.convert.dense_to_moe.dense_conversion import Conversion, ConversionPlan, ConversionReport

_FAILED_BEFORE_WORK = 2


class _Layers(click.ParamType[Any]):
    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`every`, `alternate`, or numbers and ranges with commas between, as a tuple."""
        if value in ("every", "alternate") or isinstance(value, tuple):
            return value
        try:
            ranges = [[int(end) for end in part.split("-")] for part in str(value).split(",")]
            if not all(len(ends) in (1, 2) and 0 <= ends[0] <= ends[-1] < 10_000 for ends in ranges):
                raise ValueError
        except ValueError:
            self.fail(f"{value!r} is neither every nor alternate nor a list of layers such as 0,2,4-7.", param, ctx)
        return tuple(layer for ends in ranges for layer in range(ends[0], ends[-1] + 1))


LAYERS = _Layers()


def run_conversion(plan: "Callable[[], Conversion]", out: Path, *, dry_run: bool, as_json: bool) -> None:
    """Plan, then say what it needs or do it."""
    if dry_run:
        _dry_run(plan, out, as_json=as_json)
        return
    conversion = plan()
    planned = conversion.plan(out)
    with WritingBar(planned.output_bytes) as count:
        report = conversion.run(out, count)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        _print_report(report)


def _dry_run(plan: "Callable[[], Conversion]", out: Path, *, as_json: bool) -> None:
    """Errors of the plan are problems among others, so that whoever asks for JSON gets JSON."""
    try:
        planned = plan().plan(out)
    except MoekitError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"problems": [str(error)]}, indent=2))
        sys.exit(error.exit_status)
    if as_json:
        click.echo(planned.model_dump_json(indent=2))
    else:
        _print_plan(planned)
    if planned.problems:
        sys.exit(_FAILED_BEFORE_WORK)


def _print_plan(planned: "ConversionPlan") -> None:
    from moekit.core.formatting import bytes_text, parameters_text

    total, active = parameters_text(planned.params_total), parameters_text(planned.params_active)
    click.echo(f"{planned.model_type}: {total} parameters, {active} active, {planned.tensors} tensors")
    click.echo(f"on disk {bytes_text(planned.output_bytes)}, memory {bytes_text(planned.peak_memory_bytes)}")
    same = "the same function as the dense model, to be checked"
    click.echo(same if planned.exact else f"not the same function: {planned.inexact_because}")
    for problem in planned.problems:
        click.echo(f"Problem: {problem}", err=True)


def _print_report(report: "ConversionReport") -> None:
    from moekit.core.formatting import bytes_text, parameters_text

    total, active = parameters_text(report.params_total), parameters_text(report.params_active)
    click.echo(
        f"{report.out}: {report.model_type}, {total} parameters, {active} active, {bytes_text(report.output_bytes)}"
    )
    drift = f"{report.max_logit_difference:.1e} of their standard deviation on {report.probe_tokens} tokens"
    if report.exact:
        click.echo(f"The same function: logits differ by at most {drift} (allowed {report.tolerance:.0e}).")
    else:
        click.echo(f"Logits differ by up to {drift}: {report.inexact_because}.")


class WritingBar:
    """Bytes written, on standard error."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = Console(stderr=True, highlight=False)
        columns = (TextColumn("Writing"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda size: self._progress.update(self._task, advance=size)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
