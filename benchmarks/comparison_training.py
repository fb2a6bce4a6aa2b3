"""The training of a model as `moekit compare` would train it, for benchmarks that train their own models."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.spec.comparison_plan import learning_rate_for
from moekit.comparison.spec.contestants import Size
from moekit.config import ModelConfig
from moekit.core import hardware
from moekit.data import Corpus, held_out_windows, training_batch
from moekit.models import LanguageModel
from moekit.training import Trainer, TrainingConfig
from moekit.training.loop import Point

WARMUP_STEPS = 50


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


def constant_rate_run(
    model: LanguageModel, size: Size, corpus: Corpus, *, peak: float, seed: int, measure_at: Iterable[int]
) -> list[Point]:
    """Train as a comparison's run of that seed, at `peak` times its rate, and measure at those steps; the last ends it.

    What is measured is the average of the weights, on the held-out text of a comparison's final figure.
    """
    steps = frozenset(measure_at)
    config = TrainingConfig(
        steps=max(steps),
        sequences=size.sequences,
        micro_sequences=size.sequences,
        context=size.context,
        learning_rate=peak * learning_rate_for(size.width),
        warmup_steps=WARMUP_STEPS,
        precision=hardware.fastest_precision(),
        seed=seed,
        evaluate_at=steps,
    )
    draw = {"sequences": size.sequences, "context": size.context, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            config,
            lambda step: {"tokens": training_batch(corpus, step=step, **draw)},
            lambda averaged: held_out_bits_per_byte(averaged, size, corpus),
            Path(folder) / "state.safetensors",
        )
        return trainer.run(lambda _: None).points


def held_out_bits_per_byte(model: LanguageModel, size: Size, corpus: Corpus, tokens_per_domain: int = 16384) -> float:
    """Measure a model, which is in evaluation mode afterwards."""
    windows = held_out_windows(corpus, context=size.context, tokens_per_domain=tokens_per_domain)
    with torch.no_grad():
        return mean_bits_per_byte(model.eval(), windows, hardware.fastest_precision())
