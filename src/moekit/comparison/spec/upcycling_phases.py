"""A contestant that spends part of its FLOPs as a dense model and the rest as what that is upcycled to.

Its steps follow from the FLOPs that as many steps of the dense model alone would take: after the conversion a token
may cost more, and then there are fewer of them.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveInt

from moekit.comparison.spec.model_costs import costs_of
from moekit.config import Config, ModelConfig
from moekit.convert.dense_to_moe.upcycling import Upcycling, plan_upcycling
from moekit.core.errors import UsageError
from moekit.models import build
from moekit.training import TrainingConfig


class UpcyclingOptions(Upcycling):
    """How a contestant is upcycled on the way.

    after: the share of the FLOPs that the dense model gets. To `seed` that of the run is added.
    """

    after: Annotated[float, Field(gt=0, lt=1)] = 0.5


class UpcyclingPhases(Config):
    """The two phases of a run: dense, then upcycled.

    dense: the model of the first. flops_per_token: of training, in each phase. steps: of each, once `scheduled`.
    """

    dense: ModelConfig
    options: UpcyclingOptions
    flops_per_token: tuple[PositiveInt, PositiveInt]
    steps: tuple[PositiveInt, PositiveInt] = (1, 1)

    def scheduled(self, training: TrainingConfig) -> Self:
        """Give the phases with the steps that take the FLOPs of `training` with the dense model, to half a step."""
        dense = max(1, min(round(self.options.after * training.steps), training.steps - 1))
        return self.model_copy(update={"steps": (dense, self.steps_worth(training.steps - dense))})

    def steps_worth(self, dense_steps: int) -> int:
        """Count the upcycled steps that take the FLOPs of so many dense ones; at least one."""
        dense, upcycled = self.flops_per_token
        return max(1, round(dense_steps * dense / upcycled))

    def trainings(self, training: TrainingConfig) -> tuple[TrainingConfig, TrainingConfig]:
        """Give each phase steps of its own, measured after the FLOPs at which everyone is, and before the conversion.

        The optimiser of the second is a new one, so its learning rate rises to the peak again, over as many steps as
        such an optimiser needs to see before its second moments mean something.
        """
        dense, upcycled = self.steps
        first = {step for step in training.evaluate_at if step <= dense} | {dense}
        warmup = min(training.warmup_steps, round(1 / (1 - training.beta2)))
        second = {self.steps_worth(step - dense) for step in training.evaluate_at if step > dense}
        return (
            training.model_copy(update={"steps": dense, "evaluate_at": frozenset(first)}),
            training.model_copy(
                update={"steps": upcycled, "evaluate_at": frozenset(second | {upcycled}), "warmup_steps": warmup}
            ),
        )

    def flops(self, step: int, step_tokens: int) -> float:
        """Count the FLOPs spent after `step` steps of both phases."""
        dense = min(step, self.steps[0])
        return float(step_tokens * (dense * self.flops_per_token[0] + (step - dense) * self.flops_per_token[1]))


def upcycled(dense: ModelConfig, options: UpcyclingOptions, context: int) -> tuple[ModelConfig, UpcyclingPhases]:
    """Plan what `dense` becomes, by the conversion itself on an untrained model; and the phases, not scheduled yet.

    Raises UsageError where the options do not fit the model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dense"
        build(dense).save(folder)
        try:
            config = plan_upcycling(folder, options).config
        except UsageError as error:
            raise UsageError(str(error).replace(str(folder), "the dense model")) from error
    costs = costs_of(dense, context), costs_of(config, context)
    flops = costs[0].flops_per_token, costs[1].flops_per_token
    return config, UpcyclingPhases(dense=dense, options=options, flops_per_token=flops)
