"""The summary table: a row a contestant, as the terminal and the report show it."""

from collections.abc import Callable
from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import find, finished, hold_against
from moekit.comparison.analysis.verdict_wording import NONE, reached_text
from moekit.comparison.estimates import Estimate
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.comparison.verdict_schema import Axis
from moekit.core import formatting


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the summary table, as people read it; `NONE` where there is no figure."""

    name: str
    params_total: str
    params_active: str
    bits_per_byte: str
    tokens_per_second: str
    peak_memory: str
    ms_per_token: str
    reached_flops: str
    reached_seconds: str


SUMMARY_HEADINGS = SummaryRow(
    name="Contestant",
    params_total="Parameters",
    params_active="Active",
    bits_per_byte="Bits per byte",
    tokens_per_second="Training tokens/s",
    peak_memory="Peak memory",
    ms_per_token="ms per token (p95)",
    reached_flops="FLOPs to baseline's level",
    reached_seconds="Seconds to baseline's level",
)


def summary_table(results: Results) -> list[SummaryRow]:
    """Make a row a contestant, in the order of the results; `SUMMARY_HEADINGS` names the columns."""
    baseline = find(results, results.baseline)
    return [_summary_row(contestant, baseline) for contestant in results.contestants]


def _summary_row(contestant: ContestantResults, baseline: ContestantResults | None) -> SummaryRow:
    final = Estimate.of([run.bits_per_byte for run in finished(contestant) if run.bits_per_byte is not None])
    median, p95 = contestant.decode_ms_per_token_median, contestant.decode_ms_per_token_p95
    return SummaryRow(
        name=contestant.name,
        params_total=_or_none(contestant.params_total, formatting.count_text),
        params_active=formatting.count_text(contestant.params_active),
        bits_per_byte=_plus_minus(final) + ("*" if final and contestant.caveat else ""),
        tokens_per_second=_or_none(contestant.train_tokens_per_second, formatting.count_text),
        peak_memory=_or_none(contestant.peak_memory_bytes, formatting.bytes_text),
        ms_per_token=NONE if median is None or p95 is None else f"{median:.2f} ({p95:.2f})",
        reached_flops=_reached(contestant, baseline, "flops"),
        reached_seconds=_reached(contestant, baseline, "seconds"),
    )


def _plus_minus(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    if estimate.spread == "none":
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _or_none(value: float | None, text: Callable[[float], str]) -> str:
    return NONE if value is None else text(value)


def _reached(contestant: ContestantResults, baseline: ContestantResults | None, axis: Axis) -> str:
    if baseline is None or not finished(baseline) or not finished(contestant):
        return NONE
    if baseline.caveat or contestant.caveat:
        return NONE
    if contestant.name == baseline.name:
        return "1 (baseline)"
    against = hold_against(contestant, baseline)
    return reached_text(against, against.final, axis)
