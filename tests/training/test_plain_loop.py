"""moekit's training against a loop as anyone would write it: same model, same batches, same losses."""

import copy
import math
import statistics
from pathlib import Path

import pytest
import torch
from tests.training.plain_loop import constant, cosine, plain_loop
from torch import Tensor

from moekit.comparison.spec.contestants import SIZES, default_contestants
from moekit.config import ModelConfig
from moekit.models import Decoder
from moekit.training import StepReport, Trainer, TrainingConfig

STEPS, SEQUENCES, CONTEXT, RATE, WARMUP = 24, 4, 32, 0.002, 6


def batch(step: int) -> Tensor:
    """Draw text of a small alphabet in which each letter mostly follows the one before."""
    generator = torch.Generator().manual_seed(step)
    jumps_BT = torch.rand((SEQUENCES, CONTEXT + 1), generator=generator) < 0.2
    places_BT = torch.randint(0, 26, (SEQUENCES, CONTEXT + 1), generator=generator)
    steps_BT = torch.where(jumps_BT, places_BT, torch.ones_like(places_BT))
    return 97 + steps_BT.cumsum(1) % 26


def trained(model: Decoder, precision: str, folder: Path) -> list[float]:
    """Train with moekit; gives each step's loss in nats a token."""
    config = TrainingConfig(
        steps=STEPS,
        sequences=SEQUENCES,
        micro_sequences=SEQUENCES,
        context=CONTEXT,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        precision=precision,
    )
    losses: list[float] = []

    def note(report: StepReport) -> None:
        losses.append(report.loss * math.log(2))

    Trainer(model, config, lambda step: {"tokens": batch(step)}, lambda _: 1.0, folder / "state").run(note)
    return losses


def built(contestant: str) -> Decoder:
    """Build a contestant of the smallest size, with weights that are always the same."""
    config = default_contestants(SIZES["xs"])[contestant].config(SIZES["xs"])
    assert isinstance(config, ModelConfig)
    torch.manual_seed(1)
    return Decoder(config)


@pytest.mark.parametrize("contestant", ["dense", "moe-fine", "hybrid"])
def test_losses_are_those_of_a_plain_loop(contestant: str, tmp_path: Path) -> None:
    model = built(contestant)
    expected = list(plain_loop(copy.deepcopy(model), batch, constant(RATE, WARMUP), STEPS, bfloat16=False))
    assert trained(model, "float32", tmp_path) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("contestant", ["dense", "moe-fine"])
def test_in_bfloat16_they_are_within_its_noise(contestant: str, tmp_path: Path) -> None:
    model = built(contestant)
    expected = list(plain_loop(copy.deepcopy(model), batch, constant(RATE, WARMUP), STEPS, bfloat16=True))
    losses = trained(model, "bfloat16", tmp_path)
    assert losses == pytest.approx(expected, rel=0.03)
    assert statistics.fmean(losses) == pytest.approx(statistics.fmean(expected), rel=0.003)


def test_a_cosine_ends_at_its_floor() -> None:
    rate = cosine(1.0, warmup=10, steps=110)
    assert [rate(5), rate(10), rate(60), rate(110)] == pytest.approx([0.5, 1.0, 0.55, 0.1])
