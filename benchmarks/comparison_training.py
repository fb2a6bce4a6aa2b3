"""The training of a model as `moekit compare` would train it, for benchmarks that train their own models."""

import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from environment import environment
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.spec.comparison_plan import learning_rate_for
from moekit.comparison.spec.contestants import Size
from moekit.config import ModelConfig
from moekit.core import files, hardware
from moekit.data import Corpus, held_out_windows, training_batch
from moekit.models import LanguageModel
from moekit.training import Trainer, TrainingConfig

WARMUP_STEPS = 50


def comparison_training(model: ModelConfig, *, steps: int, sequences: int, warmup_steps: int) -> TrainingConfig:
    """Describe a training with the learning rate and the precision of `moekit compare`, a whole batch at a time."""
    return TrainingConfig(
        steps=steps,
        sequences=sequences,
        micro_sequences=sequences,
        context=model.context,
        learning_rate=learning_rate_for(model.width, steps * sequences * model.context),
        warmup_steps=warmup_steps,
        precision=hardware.fastest_precision(),
    )


def comparison_run(model: LanguageModel, size: Size, corpus: Corpus, *, peak: float, seed: int, steps: int) -> float:
    """Train as a comparison's run of that seed and length, at `peak` times its rate: bits per byte at its end.

    What is measured is the average of the weights, on the held-out text of a comparison's final figure.
    """
    config = TrainingConfig(
        steps=steps,
        sequences=size.sequences,
        micro_sequences=size.sequences,
        context=size.context,
        learning_rate=peak * learning_rate_for(size.width, steps * size.sequences * size.context),
        warmup_steps=WARMUP_STEPS,
        precision=hardware.fastest_precision(),
        seed=seed,
        evaluate_at=frozenset({steps}),
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
        return trainer.run(lambda _: None).points[-1].bits_per_byte


def held_out_bits_per_byte(model: LanguageModel, size: Size, corpus: Corpus, tokens_per_domain: int = 16384) -> float:
    """Measure a model, which is in evaluation mode afterwards."""
    windows = held_out_windows(corpus, context=size.context, tokens_per_domain=tokens_per_domain)
    with torch.no_grad():
        return mean_bits_per_byte(model.eval(), windows, hardware.fastest_precision())


def run_all(
    out: Path, found: dict[str, Any], wanted: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]
) -> dict[str, Any]:
    """Make the runs that found["runs"] does not hold, as many at a time as there are cores, with one thread each.

    Args:
        out: where `found` is written as each run ends, so that the same command goes on where it was stopped.
        found: what the file is to hold; the results go into its "runs".
        wanted: by the name of a run what makes it, and with what arguments.
    """
    runs: dict[str, Any] = found["runs"]
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(make, *given): name for name, (make, given) in wanted.items() if name not in runs}
        for future in as_completed(running):
            name = running[future]
            runs[name] = future.result()
            print(f"{name}: {runs[name]}", flush=True)
            files.write_text(out, json.dumps(found, indent=1) + "\n")
    return runs


def found_before(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Give what `out` is to hold: what was asked for, where it was made, and the runs that are there from before."""
    found: dict[str, Any] = {**environment(), **asked, "runs": {}}
    if out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        if any(before[key] != value for key, value in asked.items()):
            raise SystemExit(f"{out} holds runs of {', '.join(f'{key} {before[key]}' for key in asked)}")
        found["runs"] = before["runs"]
    return found
