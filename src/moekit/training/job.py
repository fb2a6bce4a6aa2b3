"""What `moekit train` is told: a YAML file, or the same as a `TrainingJob`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from moekit.config import (
    AnyModelConfig,
    Config,
    EncoderConfig,
    ModelConfig,
    NGramConfig,
    XLNetConfig,
    never_learns,
)
from moekit.core.validation import read_yaml, validate


class Schedule(Config):
    """How long and how: the parts of TrainingConfig that a user sets.

    Attributes:
        tokens: the tokens of all steps together, instead of steps.
        context: the tokens of a row; by default the model's, up to 512.
        measure: how often the held-out text is measured.
    """

    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    sequences: PositiveInt = 16
    micro_sequences: PositiveInt | None = None
    context: PositiveInt | None = None
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: PositiveInt = 50
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: PositiveFloat = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    seed: int = 0
    measure: PositiveInt = 10
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give steps or tokens, one of them")
        return self


class TrainingJob(Config):
    """One training: a model and what it learns from. One of model, preset and start is given.

    Attributes:
        model: a configuration with its kind.
        preset: the name of a preset.
        start: a folder with a model to go on from.
        data: sources as `moekit compare --data` takes them, none for the embedded corpus.
        pairs: instead of these a file of JSON lines with `source` and `target`, for a model that goes from one to the
            other.
        tokenizer: a folder with a tokenizer.json; without it bytes, or that of `start`.
    """

    model: AnyModelConfig | None = None
    preset: str | None = None
    start: str | None = None
    data: tuple[str, ...] = ()
    pairs: str | None = None
    text_column: str = "text"
    domain_column: str | None = None
    tokenizer: str | None = None
    training: Schedule | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(given is not None for given in (self.model, self.preset, self.start)) != 1:
            raise ValueError("give one of model, preset and start")
        layers = self.model.feed_forwards if isinstance(self.model, ModelConfig | EncoderConfig | XLNetConfig) else ()
        if reason := never_learns(layers):
            raise ValueError(reason)
        if self.training is None and not isinstance(self.model, NGramConfig):
            raise ValueError("training is missing: give at least steps or tokens")
        return self


def read_job(path: Path) -> TrainingJob:
    """Read the file; raise UsageError naming the key that is wrong."""
    return validate(TrainingJob, read_yaml(path), where=str(path))
