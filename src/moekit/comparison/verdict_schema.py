"""The verdict as data: what `results.json` says of the answer, and all that its words are made from.

Ratios are contestant over baseline, below 1 where the contestant takes less; differences are contestant less baseline.
"""

from typing import Annotated, Literal

from pydantic import Field

from moekit.comparison.estimates import Estimate
from moekit.config import Config

Kind = Literal["dense", "moe", "hybrid", "lstm", "ngram"]
Axis = Literal["tokens", "flops", "seconds"]
Standing = Literal["winner", "loser", "not shown"]
Reason = Literal[
    "decided",
    "within_seed_noise",
    "within_text_noise",
    "one_seed",
    "rivals_failed",
    "baseline_failed",
    "nothing_finished",
    "baseline_unfinished",
    "baseline_caveat",
    "nothing_to_compare",
    "references_alone",
    "no_common_seed",
]


class Reach(Config):
    """What it took to reach the baseline's level at a share of the baseline's tokens, over what the baseline needed."""

    share: float
    ratios: Annotated[
        dict[Axis, Estimate] | None,
        Field(
            description="without an axis on which one side spends nothing; null where not every seed reached the "
            "level: a mean over those that did would be one of survivors"
        ),
    ]
    at_least: Annotated[
        dict[Axis, Estimate] | None,
        Field(
            description="where some seeds reached it, and some did not: the ratios with all that was spent in place of "
            "what the latter would still have needed, so that the truth is more"
        ),
    ]
    reached: Annotated[int, Field(description="seeds that reached it")]
    seeds: Annotated[int, Field(description="of so many pairs")]


class TextSpread(Config):
    """How far a difference moves with the held-out text alone: the 95 % interval of a bootstrap over documents."""

    low: float
    high: float
    parts: Annotated[int, Field(description="documents, or stretches of long ones, that were drawn anew")]


class Interval(Config):
    """The ends of a 95 % interval."""

    low: float
    high: float


class AgainstBaseline(Config):
    """One contestant against the baseline, paired by seed. Ratios are null where one side has no figure."""

    name: str
    kind: Kind
    runs: int
    failed: Annotated[int, Field(description="runs that did not come to their end")]
    difference: Annotated[Estimate | None, Field(description="final bits per byte (negative: better)")]
    text: Annotated[TextSpread | None, Field(description="of the same difference")] = None
    reach: Annotated[tuple[Reach, ...], Field(description="at 25, 50, 75 and 100 % of the baseline's tokens")]
    inverse: Annotated[
        Reach, Field(description="what the baseline needed for the contestant's final level, over the contestant's own")
    ]
    memory: Annotated[Estimate | None, Field(description="peak in training")]
    seconds: Annotated[Estimate | None, Field(description="of a whole run")]
    speed: Annotated[Estimate | None, Field(description="training tokens per second")]
    weights: Annotated[float | None, Field(description="bytes as served")]
    flops: Annotated[
        float | None,
        Field(
            description="for a token in training; 0 where the contestant multiplies nothing, null where the baseline "
            "alone does not"
        ),
    ]
    decode: Annotated[float | None, Field(description="time per decoded token, trained models as served")]
    decode_interval: Annotated[
        Interval | None,
        Field(description="its 95 % interval over rounds in which models take turns; null where they did not"),
    ] = None
    decode_grown: Annotated[float | None, Field(description="the same at a size that no cache holds")] = None
    decode_grown_interval: Interval | None = None
    domains: Annotated[dict[str, Estimate], Field(description="final bits per byte by domain")]

    @property
    def final(self) -> Reach:
        """What it took to reach the baseline's final level."""
        return self.reach[-1]


class Check(Config):
    """One thing that strengthens (`good`) or weakens the evidence for the verdict."""

    code: Annotated[str, Field(description="what it is about, for programs")]
    good: bool
    text: Annotated[str, Field(description="the same in words, contestants between backticks")]


class Standings(Config):
    """Who is ahead at equal tokens, FLOPs and seconds of training; null where one side spends none."""

    token: Standing
    flop: Standing | None
    second: Standing | None


class VerdictRecord(Config):
    """The answer to *dense or mixture of experts?*, and what it rests on."""

    answer: Annotated[
        Kind | Literal["undecided"], Field(description="the kind of the winner, or that there is no answer")
    ]
    reason: Annotated[Reason, Field(description="why there is this answer, or none")]
    baseline: str
    baseline_kind: Kind | None
    caveats: Annotated[dict[str, str], Field(description="by contestant, why it is held against nobody")]
    leader: Annotated[
        str | None,
        Field(description="the best of the other kind than the baseline's (of all, where there is no other kind)"),
    ]
    winner: Annotated[str | None, Field(description="the leader or the baseline")]
    loser: str | None
    candidates: Annotated[int, Field(description="so many different ones could have led")]
    picks: Annotated[
        dict[str, int], Field(description="in so many seeds the others picked it: who the difference is of")
    ]
    difference: Annotated[
        Estimate | None,
        Field(description="final bits per byte, leader less baseline, each seed against the pick of the others"),
    ]
    standings: Annotated[Standings | None, Field(description="of the winner")]
    against: Annotated[list[AgainstBaseline], Field(description="each contestant without a caveat")]
    checks: Annotated[list[Check], Field(description="what strengthens and what weakens the evidence")]
