"""The training of a model as `moekit compare` would train it, for benchmarks that train their own models."""

from moekit.comparison.spec.comparison_plan import learning_rate_for
from moekit.config import ModelConfig
from moekit.core import hardware
from moekit.training import TrainingConfig


def comparison_training(model: ModelConfig, *, steps: int, sequences: int, warmup_steps: int) -> TrainingConfig:
    """Describe a training with the learning rate and the precision of `moekit compare`, a whole batch at a time."""
    return TrainingConfig(
        steps=steps,
        sequences=sequences,
        micro_sequences=sequences,
        context=model.context,
        learning_rate=learning_rate_for(model.width),
        warmup_steps=warmup_steps,
        precision=hardware.fastest_precision(),
    )
