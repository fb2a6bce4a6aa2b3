"""The training loop: its parts against loops, resuming to the bit, and what happens when things go wrong."""

import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from moekit.config import ModelConfig, SoftmaxTopKConfig
from moekit.core.errors import MoekitError, TrainingFailed
from moekit.models import Decoder
from moekit.moe import Routing
from moekit.training import (
    Interrupted,
    StepReport,
    Trainer,
    TrainingConfig,
    learning_rate,
    new_average,
    new_optimizer,
    training_step,
)
from moekit.training.loop import is_spike

pytestmark = pytest.mark.processor


def training_config(**changes: object) -> TrainingConfig:
    values = {
        "steps": 12,
        "sequences": 4,
        "micro_sequences": 2,
        "context": 16,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "evaluate_at": frozenset({4, 8, 12}),
    }
    return TrainingConfig.model_validate(values | changes)


def batch(step: int) -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, 256, (4, 17), generator=torch.Generator().manual_seed(step))}


def evaluate(model: Decoder) -> float:
    return -model.log_prob(batch(0)["tokens"]).mean().item() / math.log(2)


def ignore(report: StepReport) -> None:
    pass


def trainer(config: ModelConfig, path: Path, **changes: object) -> Trainer:
    torch.manual_seed(1)
    return Trainer(Decoder(config), training_config(**changes), batch, evaluate, path)


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop_at", [1, 5, 8])
def test_a_resumed_run_ends_bit_identical(
    make_config: Callable[..., ModelConfig], tmp_path: Path, stop_at: int, precision: str
) -> None:
    config = make_config()
    whole = trainer(config, tmp_path / "whole", precision=precision).run(ignore)

    def interrupt(report: StepReport) -> None:
        if report.step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        trainer(config, tmp_path / "parts", precision=precision).run(interrupt)
    second = trainer(config, tmp_path / "parts", precision=precision)
    assert second.history.step == stop_at
    parts = second.run(ignore)
    assert [(p.step, p.bits_per_byte, p.train_loss) for p in parts.points] == [
        (p.step, p.bits_per_byte, p.train_loss) for p in whole.points
    ]
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    config = make_config().model_copy(update={"init_std": 0.02})
    torch.manual_seed(0)
    always = batch(5)
    run = Trainer(
        Decoder(config), training_config(steps=40, evaluate_at=frozenset({1, 40})), lambda step: always,
        lambda model: -model.log_prob(always["tokens"]).mean().item() / math.log(2), tmp_path / "state",
    ).run(ignore)  # fmt: skip
    assert run.points[0].bits_per_byte > 7
    assert run.points[-1].bits_per_byte < 5


def test_micro_batches_add_up(make_config: Callable[..., ModelConfig]) -> None:
    """Without auxiliary losses (which are means over a micro-batch) the gradient is that of the whole batch."""
    config = make_config()
    quiet = [
        layer
        if layer.kind == "dense"
        else layer.model_copy(update={"router": SoftmaxTopKConfig(top_k=2, balance_loss=0.0, z_loss=0.0)})
        for layer in config.feed_forwards
    ]
    config = config.with_feed_forwards(quiet)
    after = []
    for micro in (1, 2, 4):
        torch.manual_seed(3)
        model = Decoder(config).double()
        settings = training_config(micro_sequences=micro, clip_norm=1e9)
        loss = training_step(model, new_optimizer(model, settings), batch(1), settings, rate=1e-3).loss
        after.append((loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    for loss, gradient in after[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-12)
        assert (gradient - after[0][1]).norm() < 1e-10 * after[0][1].norm()


def test_auxiliary_losses_reach_the_router(make_config: Callable[..., ModelConfig]) -> None:
    model = Decoder(make_config()).double()
    settings = training_config(micro_sequences=4, clip_norm=1e9)
    training_step(model, new_optimizer(model, settings), batch(1), settings, rate=0.0)
    router = model.layers[1].feed_forward.router.weight
    with_losses = router.grad.clone()
    routings: list[Routing] = []
    model.zero_grad()
    logits = model(batch(1)["tokens"][:, :-1], routings=routings)
    F.cross_entropy(logits.flatten(0, 1), batch(1)["tokens"][:, 1:].flatten()).backward(retain_graph=True)
    without = router.grad.clone()
    sum(model.moe_layers[0].router.losses(routings[0].sums).values()).backward()
    assert not torch.allclose(with_losses, without, rtol=1e-3)
    torch.testing.assert_close(with_losses, router.grad, rtol=1e-9, atol=1e-12)


def test_the_learning_rate_rises_and_stays() -> None:
    rates = [learning_rate(step, peak=2.0, warmup_steps=10) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 5 for step in range(1, 11)])
    assert set(rates[9:]) == {2.0}


def test_the_average_is_a_window_that_grows(make_config: Callable[..., ModelConfig]) -> None:
    """Against the definition, weights proportional to t^gamma: 10 % of the training wide after any number of steps."""
    model = Decoder(make_config())
    average = new_average(model)
    history = []
    for step in range(1, 201):
        with torch.no_grad():
            model.head.weight.fill_(step)
        average.move()
        history.append(average.module.head.weight[0, 0].item())
    steps = torch.arange(1, 201, dtype=torch.float64)
    for at in (1, 2, 20, 200):
        share = steps[:at] ** 6.94
        assert history[at - 1] == pytest.approx(float((share * steps[:at]).sum() / share.sum()), abs=0.5)
    mean = history[-1]
    deviation = float(((steps - mean).square() * (share / share.sum())).sum().sqrt())
    assert deviation == pytest.approx(0.10 * 200, rel=0.02)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_what_is_measured_is_the_average(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    run = trainer(make_config(), tmp_path / "state", evaluate_at=frozenset({12}))
    points = run.run(ignore).points
    assert points[0].bits_per_byte == evaluate(run.averaged) != evaluate(run.model)


def test_vectors_do_not_decay(make_config: Callable[..., ModelConfig]) -> None:
    model = Decoder(make_config())
    decaying, plain = new_optimizer(model, training_config()).param_groups
    assert {p.dim() for p in plain["params"]} == {1}
    assert plain["weight_decay"] == 0
    assert decaying["weight_decay"] == 0.1
    assert len(decaying["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_a_loss_that_is_no_number_fails_the_run(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    run = trainer(make_config(), tmp_path / "state")

    def poison(report: StepReport) -> None:
        if report.step == 3:
            with torch.no_grad():
                run.model.head.weight[0, 0] = math.nan

    with pytest.raises(TrainingFailed, match="no longer a number at step 4 of 12"):
        run.run(poison)


def test_infinite_gradients_leave_the_weights(make_config: Callable[..., ModelConfig]) -> None:
    model = Decoder(make_config())
    settings = training_config()
    before = model.embedding.weight.clone()
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    assert math.isnan(training_step(model, new_optimizer(model, settings), batch(1), settings, rate=1.0).loss)
    assert torch.equal(model.embedding.weight, before)


def test_a_spike_stands_out_of_its_window() -> None:
    calm = [3.0 + 0.01 * (i % 5) for i in range(50)]
    assert is_spike(3.5, calm)
    assert not is_spike(3.04, calm)
    assert not is_spike(9.0, calm[:10])


@pytest.mark.parametrize("damage", ["truncate", "garbage", "other model"])
def test_a_damaged_checkpoint_is_named(make_config: Callable[..., ModelConfig], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.safetensors"
    config = make_config()
    trainer(config, path).run(ignore)
    if damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 4096)
    else:
        config = config.model_copy(update={"layers": config.layers[:1]})
    with pytest.raises(MoekitError, match=r"state\.safetensors is damaged or of another model"):
        trainer(config, path)


def test_a_full_disk_keeps_the_last_checkpoint(
    make_config: Callable[..., ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    config = make_config()
    with pytest.raises(Interrupted):
        trainer(config, path).run(lambda report: os.kill(os.getpid(), signal.SIGTERM))
    before = path.read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moekit.training.checkpoint.save_file", full)
    with pytest.raises(MoekitError, match="disk is full"):
        trainer(config, path).run(ignore)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]


def test_no_signals_outside_the_main_thread(make_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(trainer(make_config(), tmp_path / "state", steps=2).run(ignore).step)
    )
    thread.start()
    thread.join()
    assert ended == [2]
