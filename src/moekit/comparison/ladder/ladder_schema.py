"""The schema of `ladder.json`: what the rungs gave, what was predicted of them, and leverage with its intervals.

FLOPs are those of training; bits per byte are of held-out text. Intervals are of 80 %.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from moekit.comparison.results_schema import Record
from moekit.core import files

LADDER_SCHEMA_VERSION = 1


class RungRecord(Record):
    """One rung: an ordinary comparison in a folder of its own."""

    folder: str
    size: str
    tokens: Annotated[int, Field(description="of each run")]
    seeds: int
    flops: Annotated[float, Field(description="of a run of the baseline")]
    baseline_size: Annotated[float, Field(description="N of the baseline: its training FLOPs of a token over six")]
    epochs: Annotated[float, Field(description="how often the most read domain's text was read")]
    bits_per_byte: Annotated[
        dict[str, float], Field(description="at the end of the run, by contestant, on the sample of its curve")
    ]
    curves: Annotated[
        dict[str, list[tuple[float, float]]],
        Field(description="FLOPs and bits per byte, means over seeds, by contestant"),
    ]
    order: Annotated[list[str], Field(description="the contestants, the lowest bits per byte first")]
    pairs_in_order: Annotated[int, Field(description="pairs of contestants in the order of the largest rung")]
    pairs: int
    order_kept: Annotated[
        float, Field(description="share of drawings of the seeds' noise in which the whole order is the largest rung's")
    ]


class LawRecord(Record):
    """One form of law, fitted to all rungs."""

    form: str
    formula: str
    used: bool
    problem: Annotated[str | None, Field(description="why it is not used")]
    floor: Annotated[float, Field(description="E, bits per byte")]
    misfit: Annotated[
        float, Field(description="standard deviation of runs around it beyond chance, as a share of the loss")
    ]
    size_exponents: Annotated[dict[str, float], Field(description="alpha by contestant (kappa, of FLOPs, for compute)")]
    token_exponents: Annotated[dict[str, float], Field(description="beta by contestant; none for compute")]


class PredictionRecord(Record):
    """The largest rung as the smaller ones predicted it."""

    contestant: str
    predicted: Annotated[float, Field(description="bits per byte at the end of its run")]
    low: float
    high: float
    got: float
    inside: bool


class HeldOutRecord(Record):
    """What predicting rungs from smaller ones came to."""

    predictions: list[PredictionRecord]
    inside: Annotated[int, Field(description="predictions whose interval holds what came out")]
    drift_per_decade: Annotated[
        float,
        Field(
            description="standard deviation, in natural logarithms, by which leverage strays in each decade beyond the "
            "ladder over what the fits themselves say, from all held-out rungs"
        ),
    ]


class LeveragePoint(Record):
    """Leverage at so many FLOPs of the contestant, with its interval and what that is made of."""

    flops: float
    decades_beyond: Annotated[float, Field(description="of the ladder's end; 0 within it")]
    leverage: Annotated[float, Field(description="the median")]
    low: float
    high: float
    from_seeds: Annotated[float, Field(description="standard deviation in natural logarithms: of drawing seeds anew")]
    from_fit: Annotated[float, Field(description="of all that one form of law leaves open, seeds among it")]
    from_law: Annotated[float, Field(description="between the forms of law")]
    from_held_out: Annotated[float, Field(description="added because held-out rungs strayed")]


class LossPoint(Record):
    """Bits per byte by the laws at so many FLOPs, the ladder's tokens for each parameter."""

    flops: float
    bits_per_byte: float
    low: float
    high: float


class ContestantLadder(Record):
    """One contestant along the ladder and up to three decades beyond."""

    name: str
    kind: Literal["dense", "moe", "hybrid", "lstm", "ngram"]
    expansion: Annotated[float, Field(description="total over active feed-forward parameters; 1 for dense")]
    losses: list[LossPoint]
    leverage: Annotated[list[LeveragePoint], Field(description="over the baseline; none for itself")]


class PublishedFigure(Record):
    """What one published law says of one contestant's leverage."""

    law: str
    contestant: str
    flops: float
    leverage: Annotated[float | None, Field(description="null where the law does not speak of such a mixture")]
    within_its_range: bool


class PublishedRecord(Record):
    """A published law, as it was evaluated."""

    name: str
    source: str
    formula: str
    meaning: str
    fitted_on: str
    flops: tuple[float, float]
    checked: str


class ScaleAnswer(Record):
    """What `--at` asked for."""

    asked: str
    flops: float
    rule: Annotated[str | None, Field(description="how parameters became FLOPs")]
    by: Annotated[
        Literal["ladder", "published laws"], Field(description="who speaks: beyond three decades, not the ladder")
    ]
    leverage: dict[str, LeveragePoint]
    published: list[PublishedFigure]
    sentences: list[str]


class LadderResults(Record):
    """One finished ladder."""

    schema_version: int = LADDER_SCHEMA_VERSION
    moekit: Annotated[str, Field(description="version")]
    created: Annotated[str, Field(description="UTC, ISO 8601")]
    command: str
    corpus: str
    machine: str
    baseline: str
    tokens_per_size: Annotated[float, Field(description="the allocation: tokens for each N, at every rung and beyond")]
    noise: Annotated[float, Field(description="standard deviation of one run's end over seeds, as a share of the loss")]
    noise_assumed: Annotated[bool, Field(description="whether no rung had two seeds to measure it")]
    rungs: list[RungRecord]
    laws: list[LawRecord]
    held_out: HeldOutRecord | None
    contestants: list[ContestantLadder]
    published_laws: list[PublishedRecord]
    published: list[PublishedFigure]
    sentences: Annotated[list[str], Field(description="what it comes to, in words")]
    at: ScaleAnswer | None = None


def write_ladder(results: LadderResults, path: Path) -> None:
    """Write `results` as JSON, all of it or nothing."""
    files.write_text(path, results.model_dump_json(indent=1) + "\n")


def read_ladder(path: Path) -> LadderResults:
    """Read what `write_ladder` wrote; raises pydantic's ValidationError where it is anything else."""
    return LadderResults.model_validate_json(path.read_text(encoding="utf-8"))
