"""Whole training steps with the compiled operations against the same steps with torch's."""

from collections.abc import Callable

import pytest
import torch

from moekit.config import ModelConfig
from moekit.kernels.training import compiled
from moekit.models import Decoder
from moekit.training import TrainingConfig, new_average, new_optimizer, training_step

pytestmark = [
    pytest.mark.processor,
    pytest.mark.skipif(not compiled.trains(), reason="there are no compiled kernels"),
]


def trained(config: ModelConfig, steps: int, precision: str, recompute: bool = False) -> tuple[list[float], Decoder]:
    """The losses of some steps on one batch, and the average of the weights after them."""
    torch.manual_seed(3)
    model = Decoder(config)
    settings = TrainingConfig(
        steps=steps, sequences=4, micro_sequences=4, context=16, learning_rate=1e-2, warmup_steps=1,
        precision=precision, recompute=recompute,
    )  # fmt: skip
    optimizer, average = new_optimizer(model, settings), new_average(model)
    batch = {"tokens": torch.randint(0, 256, (4, 17))}
    losses = [training_step(model, optimizer, batch, settings, 1e-2, average).loss for _ in range(steps)]
    return losses, average.module


@pytest.mark.parametrize("recompute", [False, True])
def test_two_steps_in_fp32_equal_torchs(
    make_config: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    config = make_config()
    losses, model = trained(config, 2, "float32", recompute)
    monkeypatch.setattr(compiled, "trains", lambda: False)
    expected, theirs = trained(config, 2, "float32", recompute)
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, found in model.state_dict().items():
        right = theirs.state_dict()[name]
        # AdamW's first steps go as far for tiny gradients as for others, whose sign is then rounding's.
        off = ((found - right).abs() > 1e-4 + 1e-3 * right.abs()).double().mean()
        assert off <= 0.02, name


def test_a_short_training_in_bf16_learns_as_torchs(
    make_config: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config().model_copy(update={"init_std": 0.02})
    losses, _ = trained(config, 30, "bfloat16")
    monkeypatch.setattr(compiled, "trains", lambda: False)
    expected, _ = trained(config, 30, "bfloat16")
    assert losses[-1] < 0.8 * losses[0]
    assert losses[-1] == pytest.approx(expected[-1], rel=0.05)
