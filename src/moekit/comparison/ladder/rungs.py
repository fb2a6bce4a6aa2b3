"""The rungs of a ladder: which sizes, how many tokens at each, and the frozen plan of them in the ladder's folder.

All rungs have one context and one batch, so that they differ in nothing but the model and the tokens that it reads;
tokens grow with N, so that FLOPs grow with its square.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moekit.comparison.spec.contestant_selection import ChosenContestants, choose_contestants
from moekit.comparison.spec.contestants import Contestant, Size, default_contestants
from moekit.comparison.spec.model_costs import costs_of
from moekit.config import Config, NGramConfig
from moekit.core import files
from moekit.core.errors import MoekitError, UsageError, did_you_mean

_CONTEXT, _SEQUENCES = 128, 16


def _size(width: int, depth: int, heads: int, kv_heads: int, hidden: int) -> Size:
    return Size(
        width=width, depth=depth, heads=heads, kv_heads=kv_heads, hidden=hidden, context=_CONTEXT, sequences=_SEQUENCES
    )


# xs, s, m and l are the sizes of `compare` but for their context and batch; the others continue them downwards.
LADDER_SIZES = {
    "w48": _size(48, 4, 1, 1, 128),
    "w64": _size(64, 4, 1, 1, 192),
    "w96": _size(96, 4, 2, 1, 256),
    "xs": _size(128, 4, 2, 1, 384),
    "s": _size(192, 4, 3, 1, 512),
    "m": _size(256, 6, 4, 2, 768),
    "l": _size(512, 8, 8, 4, 1536),
}
RUNGS = 4
DEFAULT_LARGEST = "s"
# What a ladder may take where nobody says, and the share of it that its largest rung gets: smaller models use the
# machine less well, so that their seconds fall with N to the power of 1.5 rather than of 2.
DEFAULT_LADDER_SECONDS = 3600.0
_SECONDS_BY_SIZE = 1.5
# The smallest rung has to leave its warm-up of fifty steps well behind.
FEWEST_STEPS = 300


class PlannedRung(Config):
    """A rung: the folder of its comparison, its size's name, and the training tokens of a run."""

    folder: str
    size: str
    tokens: int


class LadderPlan(Config):
    """The rungs, smallest first; each has a plan of its own in its folder."""

    moekit: str
    created: str
    command: str
    rungs: Annotated[tuple[PlannedRung, ...], Field(min_length=2)]


class LadderFolder:
    """Say where the parts of a ladder lie.

    plan: ladder-plan.json. corpus: the text. results: ladder.json. report: report.html. Each rung's folder is an
    ordinary comparison's.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "ladder-plan.json"
        self.corpus = root / "corpus"
        self.results = root / "ladder.json"
        self.report = root / "report.html"

    def rung(self, name: str) -> Path:
        """Give the folder of a rung."""
        return self.root / name

    def write_plan(self, plan: LadderPlan) -> None:
        """Write the plan, all of it or nothing."""
        files.write_text(self.plan, plan.model_dump_json(indent=1) + "\n")

    def read_plan(self) -> LadderPlan:
        """Read the plan; raises MoekitError where there is none, or one that this version cannot read."""
        try:
            return LadderPlan.model_validate_json(self.plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MoekitError(f"{self.root} holds no ladder that could be resumed (no {self.plan.name}).") from None
        except ValueError as error:
            raise MoekitError(f"{self.plan} cannot be read: {str(error).splitlines()[0]}.") from error


def sizes_up_to(largest: str) -> tuple[str, ...]:
    """Give the names of the rungs' sizes, the smallest first; raises UsageError where there is no such ladder."""
    names = list(LADDER_SIZES)
    if largest not in names:
        raise UsageError(f"There is no size {largest!r}: {did_you_mean(largest, names)}")
    end = names.index(largest) + 1
    if end < RUNGS:
        raise UsageError(f"A ladder has {RUNGS} rungs, and below {largest} there are too few: take xs, s, m or l.")
    return tuple(names[end - RUNGS : end])


def model_size(size: str) -> float:
    """Give N of the dense contestant at that size: training FLOPs of a token over six."""
    shape = LADDER_SIZES[size]
    return costs_of(default_contestants(shape)["dense"].config(shape), shape.context).flops_per_token / 6


def tokens_at(size: str, largest: str, tokens: int) -> int:
    """Give the tokens of a rung whose largest one has `tokens`: as many for each N, whole steps, one at least."""
    step = _CONTEXT * _SEQUENCES
    return max(1, round(tokens * model_size(size) / model_size(largest) / step)) * step


def largest_share(sizes: tuple[str, ...]) -> float:
    """Give the share of a budget that the largest rung gets."""
    return 1 / math.fsum((model_size(size) / model_size(sizes[-1])) ** _SECONDS_BY_SIZE for size in sizes)


def fewest_tokens(sizes: tuple[str, ...]) -> int:
    """Give the tokens of the largest rung with which the smallest takes FEWEST_STEPS."""
    step = _CONTEXT * _SEQUENCES
    return round(FEWEST_STEPS * model_size(sizes[-1]) / model_size(sizes[0]) + 1) * step


def _alike(contestants: list[Contestant], size: Size) -> list[Contestant]:
    """Give those of the default set that a ladder is for: trained models with the FLOPs of the first, within 5 %."""
    first = costs_of(contestants[0].config(size), size.context).flops_per_token
    return [
        one
        for one in contestants
        if abs(costs_of(one.config(size), size.context).flops_per_token / first - 1) <= 0.05 and one.upcycle is None
    ]


def choose_for(
    asked: str | Path | Sequence[str | Contestant] | None, sizes: Sequence[str]
) -> dict[str, ChosenContestants]:
    """Find the contestants in each size, by its name; raises UsageError for those that make no sense on a ladder."""
    if len(sizes) < 2 or any(name not in LADDER_SIZES for name in sizes):
        raise UsageError(f"A ladder has two sizes at least, of: {', '.join(LADDER_SIZES)}.")
    if list(sizes) != sorted(set(sizes), key=list(LADDER_SIZES).index):
        raise UsageError("The sizes of a ladder go from the smallest to the largest, each once.")
    chosen = {}
    for name in sizes:
        found = choose_contestants(asked, LADDER_SIZES[name])
        if asked is None:
            required = _alike(found.required, LADDER_SIZES[name])
            found = ChosenContestants(required=required, optional=[], baseline=found.baseline)
        chosen[name] = found
    _check({name: found.required for name, found in chosen.items()})
    return chosen


def _check(chosen: dict[str, list[Contestant]]) -> None:
    """Raise UsageError where a contestant makes no sense on a ladder.

    Args:
        chosen: the contestants of each size, by its name.
    """
    sizes = list(chosen)
    for small, large in zip(chosen[sizes[0]], chosen[sizes[-1]], strict=True):
        config = small.config(LADDER_SIZES[sizes[0]])
        if isinstance(config, NGramConfig):
            raise UsageError(f"{small.name} multiplies nothing: it has no FLOPs that a ladder could follow.")
        if small.upcycle is not None:
            raise UsageError(f"{small.name} is two models one after the other; a ladder follows one.")
        if config == large.config(LADDER_SIZES[sizes[-1]]):
            raise UsageError(f"{small.name} has one shape at every size: describe its layers instead of a whole model.")
