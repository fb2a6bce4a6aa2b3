"""The configuration of a training run, beside the model and the data."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from moekit.config import Config


class TrainingConfig(Config):
    """How a model is trained.

    Attributes:
        steps: the number of optimiser steps.
        sequences: the sequences of one optimiser step.
        micro_sequences: how many of them at a time fit in memory.
        context: the tokens of a sequence.
        evaluate_at: the steps after which the held-out text is measured.
        checkpoint_seconds: at most this much work is lost to a kill.
        precision: of matrix products; weights, optimiser and router stay in fp32.
        recompute: keep no activations inside layers, which saves memory and costs a second forward pass.
    """

    steps: PositiveInt
    sequences: PositiveInt
    micro_sequences: PositiveInt
    context: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: PositiveInt
    seed: int = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip_norm: PositiveFloat = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    evaluate_at: frozenset[PositiveInt] = frozenset()
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequences % self.micro_sequences:
            raise ValueError(
                f"sequences ({self.sequences}) must be a multiple of micro_sequences ({self.micro_sequences})"
            )
        return self

    @property
    def step_tokens(self) -> int:
        """The tokens of one optimiser step."""
        return self.sequences * self.context
