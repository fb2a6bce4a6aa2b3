"""The table that articles on dense and MoE models print with adjectives, with a measurement in every cell."""

from collections.abc import Callable
from dataclasses import dataclass

from moekit.comparison.analysis.baseline_comparison import find, finished, kind_of
from moekit.comparison.analysis.verdict_wording import NONE, signed
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.comparison.verdict_schema import AgainstBaseline, Axis, Kind
from moekit.core import formatting


@dataclass(frozen=True)
class Cell:
    """A figure, and in small, a line each, what it is and what goes with it."""

    figure: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One difference: its usual name, what was measured for it, and a cell for each contestant."""

    label: str
    measured: str
    cells: list[Cell]


Measure = Callable[[Results, ContestantResults, AgainstBaseline | None], Cell]


def key_differences(results: Results, against: dict[str, AgainstBaseline]) -> list[Row]:
    """Make the table's six rows; their cells are in the order of `results.contestants`."""
    return [
        Row(label, measured, [measure(results, one, against.get(one.name)) for one in results.contestants])
        for label, measured, measure in _ROWS
    ]


def _utilisation(results: Results, one: ContestantResults, against: AgainstBaseline | None) -> Cell:
    if one.params_total is None:
        return _unmeasured(one)
    part = one.params_active / max(1, one.params_total)
    share = f"{100 * part:.0f} %" if part >= 0.005 else "under 1 %"
    total, active = formatting.count_text(one.params_total), formatting.count_text(one.params_active)
    return Cell(share, (f"{active} of {total}",))


def _efficiency(results: Results, one: ContestantResults, against: AgainstBaseline | None) -> Cell:
    if one.name == results.baseline:
        flops = one.curve[-1].flops if one.curve else None
        if flops is None or one.seconds is None or one.peak_memory_bytes is None:
            return _unmeasured(one)
        used = f"{formatting.count_text(flops)}FLOPs" if flops else "no FLOPs", formatting.duration_text(one.seconds)
        return Cell("1×", (*used, formatting.bytes_text(one.peak_memory_bytes)))
    if against is None or not against.final.seeds:
        return _unmeasured(one)
    final = against.final
    memory = () if against.memory is None else (f"{against.memory.mean:.2f}× the memory",)
    if final.ratios is None:
        return Cell("not reached", (f"in {final.seeds - final.reached} of {final.seeds} seeds", *memory))
    seconds = f"{final.ratios['seconds'].mean:.2f}× the seconds"
    if "flops" not in final.ratios:  # of the two, one multiplies nothing
        return Cell(seconds, (*(("no FLOPs",) if against.flops == 0 else ()), *memory))
    return Cell(f"{final.ratios['flops'].mean:.2f}× FLOPs", (seconds, *memory))


def _scalability(results: Results, one: ContestantResults, against: AgainstBaseline | None) -> Cell:
    gains = []
    for run in finished(one):
        half = [point for point in run.curve if point.tokens <= run.curve[-1].tokens / 2]
        if half:
            gains.append(run.curve[-1].bits_per_byte - half[-1].bits_per_byte)
    if not gains:
        return _unmeasured(one)
    gain, what = signed(sum(gains) / len(gains)), "bits per byte, last doubling"
    first, last = (against.reach[0].ratios, against.final.ratios) if against else (None, None)
    axes: tuple[tuple[Axis, str], ...] = (("flops", "FLOPs"), ("seconds", "seconds"))
    for axis, noun in axes:
        if first is not None and last is not None and axis in first and axis in last:
            return Cell(gain, (what, f"{noun} {first[axis].mean:.2f} → {last[axis].mean:.2f}×"))
    return Cell(gain, (what,))


def _tasks(results: Results, one: ContestantResults, against: AgainstBaseline | None) -> Cell:
    if against is not None and against.domains:
        better = sum(estimate.mean < 0 for estimate in against.domains.values())
        name, most = min(against.domains.items(), key=lambda item: item[1].mean)
        return Cell(f"{better} of {len(against.domains)}", ("domains better", f"most: {name}, {signed(most.mean)}"))
    if not one.bits_per_byte_by_domain:
        return _unmeasured(one)
    best, worst = (choose(one.bits_per_byte_by_domain.items(), key=lambda item: item[1]) for choose in (min, max))
    return Cell(f"{best[1]:.2f}–{worst[1]:.2f}", ("bits per byte", f"{best[0]} to {worst[0]}"))


def _learning(results: Results, one: ContestantResults, against: AgainstBaseline | None) -> Cell:
    failed = sum(run.status == "failed" for run in one.runs)
    spikes = sum(run.loss_spikes for run in one.runs)
    steady = f"{spikes} loss {'spike' if spikes == 1 else 'spikes'}", f"{failed} of {len(one.runs)} runs failed"
    tables = [table for run in finished(one) for table in run.experts_by_domain]
    if kind_of(one.config) not in ("moe", "hybrid"):
        return Cell("0 bits", ("one model for all text", *steady))
    if not tables:
        return Cell(NONE, ("no router was measured", *steady))
    found = sum(table.mutual_information_bits for table in tables) / len(tables)
    shuffled = sum(table.shuffled_mean_bits for table in tables) / len(tables)
    dead = max((layer.dead_experts for run in finished(one) for layer in run.routing), default=0)
    return Cell(f"{found:.3f} bits", (f"{shuffled:.3f} shuffled", f"{dead} dead experts", *steady))


def _response(results: Results, one: ContestantResults, against: AgainstBaseline | None) -> Cell:
    median, p95 = one.decode_ms_per_token_median, one.decode_ms_per_token_p95
    if median is None or p95 is None:
        return _unmeasured(one)
    return Cell(f"{median:.3g} ms", (f"95 % point {p95:.3g} ms", f"{p95 / max(median, 1e-9):.2f}× the median"))


def _unmeasured(one: ContestantResults) -> Cell:
    if one.caveat:
        return Cell(NONE, ("not comparable",))
    return Cell(NONE, ("not measured" if finished(one) else "no run finished",))


def column_kinds(results: Results) -> list[str]:
    """Say what stands under each contestant's name: its kind; reference; baseline; not comparable."""
    names: dict[Kind, str] = {
        "dense": "dense",
        "moe": "mixture of experts",
        "hybrid": "hybrid",
        "lstm": "LSTM, reference",
        "ngram": "n-grams, reference",
    }
    baseline = find(results, results.baseline)
    return [
        names[kind_of(one.config)]
        + (", baseline" if one is baseline else "")
        + (", not comparable" if one.caveat else "")
        for one in results.contestants
    ]


_ROWS: tuple[tuple[str, str, Measure], ...] = (
    (
        "Parameter utilisation",
        "Share of all parameters that take part in computing one token, counted from the configuration.",
        _utilisation,
    ),
    (
        "Resource efficiency",
        "FLOPs, seconds and memory to reach the bits per byte that the baseline ends at, over what the baseline took.",
        _efficiency,
    ),
    (
        "Scalability",
        "What the second half of the tokens still brought; and the FLOPs to the baseline's level over the baseline's "
        "own, at a quarter of its budget and at all of it.",
        _scalability,
    ),
    (
        "Task handling",
        "Held-out bits per byte domain by domain: the range for the baseline, against it for the others.",
        _tasks,
    ),
    (
        "Learning approach",
        "Bits that a text's domain tells about the chosen expert, against shuffled domains; how steadily it trained.",
        _learning,
    ),
    (
        "Response time",
        "Time per decoded token, one sequence at a time: the median, and how far the slowest twentieth lies above it.",
        _response,
    ),
)
