"""The plan of one comparison: fixed before training starts and kept in its folder, so that resuming repeats it."""

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from moekit.compare.spec.machine import Machine
from moekit.compare.spec.model_costs import ContestantConfig
from moekit.compare.spec.upcycling_phases import UpcyclingPhases
from moekit.config import Config
from moekit.core import files
from moekit.core.errors import MoekitError
from moekit.training import TrainingConfig

# Shares of the training at which the held-out text is measured: denser at the start, where curves bend.
MEASURED_SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)

LEARNING_RATE_RULE = (
    "one fixed rule for every contestant, 0.002 · sqrt(128 / width): the best of 0.001, 0.002 and 0.004, tried on "
    "dense and moe at the smallest size"
)


class PlannedContestant(Config):
    """config: of the model that comes out. upcycled: the phases of a run that starts as another; else None."""

    name: str
    description: str
    config: ContestantConfig
    upcycled: UpcyclingPhases | None = None


class ComparisonPlan(Config):
    """Who trains on what for how long. The training's seed is replaced by each of `seeds` in turn.

    optional: those of the contestants that take part only where the budget allows; none once that is settled.
    curve_tokens, final_tokens: held-out tokens per domain measured on the way and at the end. tensorboard: see
    ComparisonRequest.
    """

    moekit: str
    created: str
    command: str
    size: str
    budget_seconds: float | None
    budget_asked: bool = True
    machine: Machine
    contestants: Annotated[tuple[PlannedContestant, ...], Field(min_length=1)]
    optional: tuple[str, ...] = ()
    baseline: str
    seeds: tuple[int, ...]
    training: TrainingConfig
    curve_tokens: int
    final_tokens: int
    decode_tokens: int = 128
    tensorboard: bool = False

    def entry(self, name: str) -> PlannedContestant:
        """The contestant of that name."""
        return next(entry for entry in self.contestants if entry.name == name)

    def training_of(self, seed: int) -> TrainingConfig:
        """The training of one run."""
        return self.training.model_copy(update={"seed": seed})

    def with_training(self, training: TrainingConfig) -> Self:
        """The plan with that training, and the phases of each contestant that has some cut to it."""
        entries = tuple(
            entry.model_copy(update={"upcycled": entry.upcycled.scheduled(training)}) if entry.upcycled else entry
            for entry in self.contestants
        )
        return self.model_copy(update={"training": training, "contestants": entries})

    def steps_of(self, name: str) -> int:
        """How many steps a run of that contestant takes."""
        phases = self.entry(name).upcycled
        return sum(phases.steps) if phases else self.training.steps


class ComparisonFolder:
    """Where the parts of one comparison lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "plan.json"
        self.corpus = root / "corpus"
        self.results = root / "results.json"
        self.report = root / "report.html"

    def run(self, contestant: str, seed: int) -> Path:
        """The folder of one training run."""
        return self.root / contestant / f"seed-{seed}"

    def state(self, contestant: str, seed: int) -> Path:
        return self.run(contestant, seed) / "state.safetensors"

    def result(self, contestant: str, seed: int) -> Path:
        return self.run(contestant, seed) / "result.json"

    def log(self, contestant: str, seed: int) -> Path:
        return self.run(contestant, seed) / "log.txt"

    def write_plan(self, plan: ComparisonPlan) -> None:
        files.write_text(self.plan, plan.model_dump_json(indent=1))

    def read_plan(self) -> ComparisonPlan:
        """Raises MoekitError where there is no plan, or one that this version cannot read."""
        try:
            return ComparisonPlan.model_validate_json(self.plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MoekitError(
                f"{self.root} holds no comparison that could be resumed (no plan.json); start one with --out."
            ) from None
        except ValueError as error:
            raise MoekitError(f"{self.plan} cannot be read: {str(error).splitlines()[0]}.") from error


def learning_rate_for(width: int) -> float:
    """The peak learning rate that LEARNING_RATE_RULE names."""
    return 0.002 * math.sqrt(128 / width)


def measured_steps(steps: int) -> frozenset[int]:
    """The steps at which the held-out text is measured; the last one always."""
    return frozenset(max(1, round(share * steps)) for share in MEASURED_SHARES)
