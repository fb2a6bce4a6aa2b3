"""A step is the same step however its batch is cut, on however many ranks, and with activations recomputed or kept."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.moe.routers import samples
from tests.training.one_step import (
    SEQUENCES,
    STEPS,
    Step,
    batch,
    decoder,
    differences,
    noise_of_the_input,
    run_rank,
    step,
)

from moekit.models import Decoder
from moekit.training import TrainingConfig, new_optimizer, training_step
from moekit.training.average import new_average


@cache
def whole(kind: str) -> Step:
    """The step of the whole batch at once."""
    with noise_of_the_input():
        return step(decoder(kind, kind), *batch(), SEQUENCES)


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
@pytest.mark.parametrize("kind", list(STEPS))
def test_micro_batches_give_the_step_of_the_whole_batch(kind: str, micro_batches: int) -> None:
    with noise_of_the_input():
        assert differences(step(decoder(kind, kind), *batch(), SEQUENCES // micro_batches), whole(kind)) == []


@pytest.mark.parametrize("micro_sequences", [8, 2])
@pytest.mark.parametrize("kind", list(STEPS))
def test_recomputation_gives_the_step_that_keeping_gives(kind: str, micro_sequences: int) -> None:
    with noise_of_the_input():
        recomputed = step(decoder(kind, kind), *batch(), micro_sequences, recompute=True)
    assert differences(recomputed, whole(kind), 1e-12 if micro_sequences == 8 else 1e-10) == []


def test_without_padding_no_mask_is_needed() -> None:
    tokens_BT, real_BT = batch()
    masked = step(decoder("softmax_top_k"), tokens_BT, torch.ones_like(real_BT), 2)
    assert differences(step(decoder("softmax_top_k"), tokens_BT, None, SEQUENCES), masked) == []


def test_the_ids_in_padding_do_not_matter() -> None:
    tokens_BT, real_BT = batch()
    other_BT = tokens_BT.where(real_BT, (tokens_BT + 7) % 31)
    with noise_of_the_input():
        assert differences(step(decoder("gshard", "gshard"), other_BT, real_BT, 4), whole("gshard")) == []


def test_averaging_the_losses_of_micro_batches_would_be_another_gradient() -> None:
    """The negative control of the tests above: what most code does, on a batch without padding."""
    tokens_BT, _ = batch()
    expected = step(decoder("softmax_top_k"), tokens_BT, None, SEQUENCES)
    model = decoder("softmax_top_k")
    for micro_batch_BT in tokens_BT.split(2):
        routings: list = []
        loss = -model.log_prob(micro_batch_BT, routings).mean()
        loss = loss + sum(model.moe_layers[0].router.losses(routings[0].sums).values())
        (loss / 4).backward()
    averaged = model.moe_layers[0].router.weight.grad
    exact = expected.gradients["layers.0.feed_forward.router.weight"]
    assert averaged is not None
    assert (averaged - exact).norm() > 1e-2 * exact.norm()


@pytest.mark.parametrize("kinds", [("gshard", "noisy_top_k"), ("gshard", "switch"), ("noisy_top_k", "sinkhorn")])
def test_the_pass_that_counts_and_the_one_that_learns_draw_the_same_noise(kinds: tuple[str, str]) -> None:
    """Real random numbers: the sums that the losses were made of are those of the pass with gradients, to the bit."""
    jitter = {"jitter": 0.3} if "switch" in kinds else {}
    first, second = decoder(kinds[0]).config, decoder(kinds[1], **jitter).config
    model = Decoder(first.model_copy(update={"layers": first.layers + second.layers})).double()
    seen: list[list[torch.Tensor]] = [[], []]
    for index, layer in enumerate(model.moe_layers):
        layer.register_forward_hook(lambda _m, _i, out, index=index: seen[index].append(out[1].sums["probs"].detach()))
    step(model, *batch(), micro_sequences=2)
    for of_layer in seen:
        assert len(of_layer) == 8
        for counted, learned in zip(of_layer[:4], of_layer[4:], strict=True):
            torch.testing.assert_close(counted, learned, rtol=1e-12, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_near_ties_fall_in_the_pass_that_learns_as_in_the_one_that_counts(recompute: bool) -> None:
    model = decoder("softmax_top_k")
    layer = model.moe_layers[0]
    samples.make_shaky(layer.router, np.random.default_rng(0))
    seen: list[list[int]] = []
    layer.register_forward_hook(lambda _m, _i, out: seen.append(out[1].assignments.token_S.tolist()))
    step(model, *batch(), micro_sequences=2, recompute=recompute)
    assert len(seen) == 8  # the recomputation stops where it has what it needs, before this hook
    assert seen[:4] == seen[4:]


@pytest.mark.parametrize("kind", ["noisy_top_k", "gshard", "sinkhorn"])
def test_real_noise_does_not_break_the_sums(kind: str) -> None:
    """Cut or not, every real token that goes in makes its choices, and without capacity all of them are computed."""
    tokens_BT, real_BT = batch()
    for micro_sequences in (SEQUENCES, 2):
        for sums in step(decoder(kind, kind), tokens_BT, real_BT, micro_sequences).sums:
            tokens = int(real_BT[:, :-1].sum())
            assert sums["tokens"] == tokens
            assert torch.equal(sums["chosen"], sums["computed"])
            assert tokens <= sums["chosen"].sum() <= 2 * tokens
            assert kind == "gshard" or sums["chosen"].sum() == 2 * tokens


@pytest.mark.parametrize("micro_sequences", [8, 2])
def test_the_bias_moves_once_a_step_against_the_load_of_the_whole_batch(micro_sequences: int) -> None:
    model = decoder("sigmoid_bias", "sigmoid_bias")
    result = step(model, *batch(), micro_sequences, recompute=True)
    for layer, sums in zip(model.moe_layers, result.sums, strict=True):
        chosen = sums["chosen"].tolist()
        mean = sum(chosen) / len(chosen)
        expected = [0.001 * ((mean > c) - (mean < c)) for c in chosen]
        assert any(expected)
        assert layer.router.bias_E.tolist() == pytest.approx(expected, abs=1e-9)


def test_two_ranks_give_the_step_of_one(tmp_path: Path) -> None:
    """Also where one has three times the micro-batches of the other."""
    cuts = (4, 6)
    torch.multiprocessing.spawn(run_rank, (str(tmp_path), cuts), nprocs=2)
    for rank in range(2):
        steps = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert steps.keys() == {(cut, kind) for cut in cuts for kind in STEPS}
        assert {part: differences(own, whole(part[1])) for part, own in steps.items()} == {part: [] for part in steps}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_average_has_the_routers_biases_of_its_step(dtype: torch.dtype) -> None:
    model = decoder("sigmoid_bias").to(dtype)
    average = new_average(model)
    config = TrainingConfig(
        steps=1, sequences=SEQUENCES, micro_sequences=SEQUENCES, context=12, learning_rate=1e-3, warmup_steps=1
    )
    tokens_BT, real_BT = batch()
    training_step(model, new_optimizer(model, config), {"tokens": tokens_BT, "real": real_BT}, config, 1e-3, average)
    for kept, of_model in zip(average.module.buffers(), model.buffers(), strict=True):
        assert of_model.abs().sum() > 0
        assert torch.equal(kept, of_model)
