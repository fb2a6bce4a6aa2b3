"""What the verbs that convert share: layers as an argument, the dry run, progress, and the reports of two of them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moekit.core.errors import MoekitError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from moekit.convert.conversion import Conversion
    from moekit.convert.dense_to_moe.dense_conversion import ConversionPlan, ConversionReport

_FAILED_BEFORE_WORK = 2


class _Layers(click.ParamType[Any]):
    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read `every`, `alternate`, or numbers and ranges with commas between, as a tuple."""
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


def show_plan(
    make: "Callable[[], Conversion]",
    out: Path,
    print_plan: Callable[[Any], None],
    *,
    as_json: bool,
    refused: "Callable[..., BaseModel] | None" = None,
) -> None:
    """Say what a conversion would write and what stands in the way, and exit with 2 where something does.

    refused: gives the plan of a conversion that cannot even be made, from its problems; without it, its JSON is
    the problems alone.
    """
    from moekit.convert.conversion import Problems, Refused, taken

    plan, status = None, _FAILED_BEFORE_WORK
    try:
        plan = make().plan(out)
        problems: list[str] = plan.problems
    except MoekitError as error:
        problems = [*(error.problems if isinstance(error, Refused) else [str(error)]), *taken(out)]
        status = error.exit_status
    if as_json:
        click.echo((plan or (refused or Problems)(problems=problems)).model_dump_json(indent=2))
    else:
        if plan is not None:
            print_plan(plan)
        for problem in problems:
            click.echo(f"Problem: {problem}", err=True)
    if problems:
        sys.exit(status)


def print_dense_plan(plan: "ConversionPlan") -> None:
    """Say what `moekit upcycle` or `moekit split` would write."""
    from moekit.core.formatting import bytes_text, parameters_text

    total, active = parameters_text(plan.params_total), parameters_text(plan.params_active)
    click.echo(f"{plan.model_type}: {total} parameters, {active} active, {plan.tensors} tensors")
    click.echo(f"on disk {bytes_text(plan.output_bytes)}, memory {bytes_text(plan.peak_memory_bytes)}")
    same = "the same function as the dense model, to be checked"
    click.echo(same if plan.exact else f"not the same function: {plan.inexact_because}")


def print_dense_report(report: "ConversionReport", *, as_json: bool) -> None:
    """Say what `moekit upcycle` or `moekit split` wrote."""
    from moekit.core.formatting import bytes_text, parameters_text

    if as_json:
        click.echo(report.model_dump_json(indent=2))
        return
    total, active = parameters_text(report.params_total), parameters_text(report.params_active)
    click.echo(
        f"{report.out}: {report.model_type}, {total} parameters, {active} active, {bytes_text(report.output_bytes)}"
    )
    drift = f"{report.max_logit_difference:.1e} of their standard deviation on {report.probe_tokens} tokens"
    if report.exact:
        click.echo(f"The same function: logits differ by at most {drift} (allowed {report.tolerance:.0e}).")
    else:
        click.echo(f"Logits differ by up to {drift}: {report.inexact_because}.")
