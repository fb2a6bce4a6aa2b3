"""Decoding as it is served, as people read it: a table, and sentences on the dense model of a mixture's total size."""

from dataclasses import dataclass

from moekit.comparison.analysis.served_decoding import (
    At,
    decode_ratio,
    decodes,
    joules_per_token,
    median_ms,
    same_total,
    token_spread,
)
from moekit.comparison.analysis.verdict_wording import NONE, listed
from moekit.comparison.results_schema import ContestantResults, Results
from moekit.core import formatting

_WHERE: dict[At, str] = {"grown": "At a size that no cache holds", "trained": "At the comparison's own size"}


@dataclass(frozen=True, kw_only=True)
class ServedRow:
    """One line of the table of decoding, as people read it; `NONE` where there is no figure."""

    name: str
    engine: str
    weights: str
    cache: str
    ms_per_token: str
    spread: str
    ratio: str


SERVED_HEADINGS = ServedRow(
    name="Contestant",
    engine="Computed by",
    weights="Weights",
    cache="KV cache",
    ms_per_token="ms per token",
    spread="p95 over median",
    ratio="Time over baseline's (95 %)",
)


def served_table(results: Results, at: At) -> list[ServedRow]:
    """Make a row of decoding a contestant, in the order of the results; `SERVED_HEADINGS` names the columns."""
    baseline = next((one for one in results.contestants if one.name == results.baseline), None)
    return [_row(contestant, baseline, at) for contestant in results.contestants]


def served_sentences(results: Results) -> list[str]:
    """Say how a mixture decodes beside the dense model of its total size, and how evenly each model's tokens come."""
    sentences = []
    for at, where in _WHERE.items():
        for mixture, dense in same_total(results, at):
            ratio = decode_ratio(dense, mixture, at)
            if ratio is not None:
                sentences.append(
                    f"{where}, a token of `{dense.name}`, which has the total parameters of `{mixture.name}`, takes "
                    f"{ratio.ratio:.2f} times as long ({ratio.low:.2f} to {ratio.high:.2f} over {ratio.rounds} rounds)."
                )
        spreads = [(one.name, spread) for one in results.contestants if (spread := _native_spread(one, at))]
        if spreads:
            told = listed([f"{spread:.2f} times the median in `{name}`" for name, spread in spreads])
            sentences.append(f"{where}, the slowest twentieth of the tokens takes at least {told}.")
        amounts = [(one.name, joules_per_token(one, at)) for one in results.contestants]
        joules = [f"{amount:.3g} J in `{name}`" for name, amount in amounts if amount is not None]
        if joules:
            whole = "processors and memory, whatever else they did"
            sentences.append(f"{where}, a token takes {listed(joules)} ({whole}).")
    return sentences


def _native_spread(contestant: ContestantResults, at: At) -> float | None:
    """Give the spread of a contestant that the native engine computes: others' calls vary for reasons of their own."""
    native = any(decode.engine == "native" for decode in decodes(contestant, at).values())
    return token_spread(contestant, at) if native else None


def _row(contestant: ContestantResults, baseline: ContestantResults | None, at: At) -> ServedRow:
    found = next(iter(decodes(contestant, at).values()), None)
    median, spread = median_ms(contestant, at), token_spread(contestant, at)
    ratio = None if baseline is None or baseline is contestant else decode_ratio(contestant, baseline, at)
    return ServedRow(
        name=contestant.name,
        engine=NONE if found is None else f"{found.engine}, {found.weight_type}",
        weights=NONE if found is None else formatting.bytes_text(found.weight_bytes),
        cache=NONE if found is None else formatting.bytes_text(found.cache_bytes),
        ms_per_token=NONE if median is None else f"{median:.3g}",
        spread=NONE if spread is None else f"{spread:.2f}",
        ratio="1 (baseline)"
        if contestant is baseline
        else NONE
        if ratio is None
        else f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
    )
