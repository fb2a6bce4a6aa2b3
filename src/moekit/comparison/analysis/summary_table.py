"""The summary table: a row a contestant, as the terminal and the report show it."""

from collections.abc import Callable
from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import finished
from moekit.comparison.analysis.decision import decide
from moekit.comparison.analysis.verdict_wording import NONE, reached_text, signed
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.comparison.verdict_schema import AgainstBaseline, Axis
from moekit.core import formatting


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the summary table, as people read it; `NONE` where there is no figure. What decides comes first."""

    name: str
    bits_per_byte: str
    difference: str
    reached_flops: str
    reached_seconds: str
    params_total: str
    params_active: str
    tokens_per_second: str
    peak_memory: str
    ms_per_token: str


SUMMARY_HEADINGS = SummaryRow(
    name="Contestant",
    bits_per_byte="Bits per byte",
    difference="Less baseline's",
    reached_flops="FLOPs to baseline's level",
    reached_seconds="Seconds to baseline's level",
    params_total="Parameters",
    params_active="Active",
    tokens_per_second="Training tokens/s",
    peak_memory="Peak memory",
    ms_per_token="ms per token (p95)",
)


def summary_table(results: Results) -> list[SummaryRow]:
    """Make a row a contestant, in the order of the results; `SUMMARY_HEADINGS` names the columns."""
    verdict = results.verdict or decide(results)
    against = {one.name: one for one in verdict.against}
    return [
        _summary_row(one, against.get(one.name), is_baseline=one.name == results.baseline and not one.caveat)
        for one in results.contestants
    ]


def _summary_row(contestant: ContestantResults, against: AgainstBaseline | None, *, is_baseline: bool) -> SummaryRow:
    final = Estimate.of([run.bits_per_byte for run in finished(contestant) if run.bits_per_byte is not None])
    median, p95 = contestant.decode_ms_per_token_median, contestant.decode_ms_per_token_p95
    return SummaryRow(
        name=contestant.name,
        params_total=_or_none(contestant.params_total, formatting.count_text),
        params_active=formatting.count_text(contestant.params_active),
        bits_per_byte=_plus_minus(final) + ("*" if final and contestant.caveat else ""),
        tokens_per_second=_or_none(contestant.train_tokens_per_second, formatting.count_text),
        peak_memory=_or_none(contestant.peak_memory_bytes, formatting.bytes_text),
        ms_per_token=NONE if median is None or p95 is None else f"{median:.3g} ({p95:.3g})",
        difference=_difference_text(against.difference if against else None),
        reached_flops=_reached(contestant, against, "flops", is_baseline=is_baseline),
        reached_seconds=_reached(contestant, against, "seconds", is_baseline=is_baseline),
    )


def _plus_minus(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    if estimate.spread == "none":
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _or_none(value: float | None, text: Callable[[float], str]) -> str:
    return NONE if value is None else text(value)


def _difference_text(difference: Estimate | None) -> str:
    if difference is None:
        return NONE
    span = f" ({signed(difference.low)} to {signed(difference.high)})" if difference.spread == "interval" else ""
    return f"{signed(difference.mean)}{span}"


def _reached(contestant: ContestantResults, against: AgainstBaseline | None, axis: Axis, *, is_baseline: bool) -> str:
    if not finished(contestant):
        return NONE
    if is_baseline:
        return "1 (baseline)"
    return reached_text(against, against.final, axis) if against else NONE
