"""The plan of one comparison: fixed before training starts and kept in its folder, so that resuming repeats it."""

import math
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt

from moekit.comparison.spec.comparison_request import ComparisonRequest
from moekit.comparison.spec.contestants import Contestant, Size
from moekit.comparison.spec.machine import Machine, this_machine
from moekit.comparison.spec.model_costs import ContestantConfig, costs_of
from moekit.comparison.spec.run_order import PlannedRun, ordered_runs
from moekit.comparison.spec.upcycling_phases import UpcyclingPhases
from moekit.config import Config
from moekit.core import hardware
from moekit.core.version import __version__
from moekit.training import TrainingConfig

# Shares of the training at which the held-out text is measured: denser at the start, where curves bend.
MEASURED_SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)

LEARNING_RATE_FORMULA = "0.0014 · sqrt(128 / width) · (1 M / tokens of a run)^0.4"
LEARNING_RATE_RULE = (
    f"one rule in the width and the tokens of a run, {LEARNING_RATE_FORMULA}, for all but gpt3 (twice that) and lstm "
    "(eight times): of the rates tried, half and double among them, the best at the smallest size and 1 M tokens"
)
# Of shorter runs the rate is that of so many tokens.
_LEAST_RULE_TOKENS = 100_000


# Held-out tokens per domain on the way and at the end; the way is paid for often, the end once.
_CURVE_TOKENS = 4096
_FINAL_TOKENS = 16384
# A long run's end is measured on more: an eighth of what it was trained on, which takes a twenty-fourth of its FLOPs.
_MOST_FINAL_TOKENS = 4 * _FINAL_TOKENS
_FINAL_SHARE = 1 / 8
_WARMUP_STEPS = 50


class PlannedLanes(Config):
    """How many runs are trained side by side, and with how many threads each; the bits of a run depend on its threads.

    threads: None for as many as torch takes by itself, as all runs did before there were lanes.
    """

    count: PositiveInt = 1
    threads: PositiveInt | None = None


class PlannedContestant(Config):
    """A contestant in the size of one comparison, as plan.json holds it.

    config: of the model that comes out. upcycled: the phases of a run that starts as another model; else None.
    rate_factor: of the learning rate that the rule gives. run_seconds: what one run is expected to take here; None
    where that was not measured.
    """

    name: str
    description: str
    config: ContestantConfig
    upcycled: UpcyclingPhases | None = None
    rate_factor: PositiveFloat = 1.0
    run_seconds: PositiveFloat | None = None


class ComparisonPlan(Config):
    """Who trains on what for how long. The training's seed is replaced by each of `seeds` in turn.

    optional: those of the contestants that take part only where the budget allows; none once that is settled.
    curve_tokens, final_tokens: held-out tokens per domain measured on the way and at the end. tensorboard: see
    ComparisonRequest. lanes: under a budget, settled with the number of steps. tune: whether the learning rates are
    still to be searched. tuning_seconds: what the search took.
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
    tune: bool = False
    tuning_seconds: Annotated[float, Field(ge=0)] = 0.0
    lanes: PlannedLanes = PlannedLanes()

    def contestant(self, name: str) -> PlannedContestant:
        """Find the contestant of that name."""
        return next(planned for planned in self.contestants if planned.name == name)

    def training_of(self, name: str, seed: int) -> TrainingConfig:
        """Give the training of one run of that contestant."""
        rate = self.training.learning_rate * self.contestant(name).rate_factor
        return self.training.model_copy(update={"seed": seed, "learning_rate": rate})

    def with_training(self, training: TrainingConfig) -> Self:
        """Give the plan with that training, and the phases of each contestant that has some cut to it."""
        entries = tuple(
            entry.model_copy(update={"upcycled": entry.upcycled.scheduled(training)}) if entry.upcycled else entry
            for entry in self.contestants
        )
        return self.model_copy(update={"training": training, "contestants": entries})

    def with_steps(self, steps: int) -> Self:
        """Give the plan with runs of so many steps, measured on the way, at the learning rate of such runs."""
        before = self.training
        longer = _length_factor(steps * before.step_tokens) / _length_factor(before.steps * before.step_tokens)
        settled = {"steps": steps, "evaluate_at": measured_steps(steps), "learning_rate": longer * before.learning_rate}
        return self.with_training(before.model_copy(update=settled))

    def with_final_text(self, domains: int) -> Self:
        """Give the plan, whose steps are known, with the held-out text that the end of a run is measured on."""
        wanted = int(_FINAL_SHARE * self.training.steps * self.training.step_tokens / domains)
        return self.model_copy(update={"final_tokens": min(max(wanted, _FINAL_TOKENS), _MOST_FINAL_TOKENS)})

    def steps_of(self, name: str) -> int:
        """Count the steps that a run of that contestant takes."""
        phases = self.contestant(name).upcycled
        return sum(phases.steps) if phases else self.training.steps


def planned_runs(plan: ComparisonPlan) -> list[PlannedRun]:
    """Give all runs in the order in which they are trained; where no time was measured, FLOPs tell which are long."""
    measured = all(planned.run_seconds is not None for planned in plan.contestants)
    context = plan.training.context
    lengths = {
        planned.name: (planned.run_seconds or 0.0) if measured else costs_of(planned.config, context).flops_per_token
        for planned in plan.contestants
    }
    return ordered_runs(list(lengths), plan.seeds, lengths)


def learning_rate_for(width: int, tokens: int) -> float:
    """Give the peak learning rate that LEARNING_RATE_RULE names, for runs of models of that width on so many tokens.

    What is best falls with the length of a run (benchmarks/learning_rates.py), here a little faster than with the power
    of 0.32 that Bjorck et al. found (arXiv 2409.19913, section 4).
    """
    return 0.0014 * math.sqrt(128 / width) * _length_factor(tokens)


def _length_factor(tokens: int) -> float:
    return float((1e6 / max(tokens, _LEAST_RULE_TOKENS)) ** 0.4)


def measured_steps(steps: int) -> frozenset[int]:
    """Give the steps at which the held-out text is measured; the last one is always among them."""
    return frozenset(max(1, round(share * steps)) for share in MEASURED_SHARES)


def new_plan(request: ComparisonRequest) -> ComparisonPlan:
    """Plan what is known before the speed of this machine is: with a budget, the number of steps comes later."""
    training = _training(request)
    return ComparisonPlan(
        moekit=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        size=request.size_name,
        budget_seconds=request.budget_seconds,
        budget_asked=request.budget_asked,
        machine=this_machine(training.precision),
        contestants=tuple(_planned(each, request.size) for each in (*request.contestants, *request.optional)),
        # Without a budget there is nothing that they could take from the others.
        optional=tuple(each.name for each in request.optional) if request.budget_seconds is not None else (),
        baseline=request.baseline,
        seeds=tuple(range(request.seeds)),
        training=training,
        curve_tokens=_CURVE_TOKENS,
        final_tokens=_FINAL_TOKENS,
        tensorboard=request.tensorboard,
        tune=request.tune,
    ).with_training(training)


def _planned(contestant: Contestant, size: Size) -> PlannedContestant:
    config, phases = contestant.config(size), None
    if contestant.upcycle is not None:
        config, phases = contestant.upcycled(size)
    return PlannedContestant(
        name=contestant.name,
        description=contestant.description,
        config=config,
        upcycled=phases,
        rate_factor=contestant.rate_factor,
    )


def _training(request: ComparisonRequest) -> TrainingConfig:
    size = request.size
    step_tokens = size.sequences * size.context
    steps = max(1, (request.tokens or step_tokens) // step_tokens)
    return TrainingConfig(
        steps=steps,
        sequences=size.sequences,
        micro_sequences=size.sequences,
        context=size.context,
        learning_rate=learning_rate_for(size.width, steps * step_tokens),
        warmup_steps=_WARMUP_STEPS,
        precision=hardware.fastest_precision(),
        evaluate_at=measured_steps(steps),
    )
