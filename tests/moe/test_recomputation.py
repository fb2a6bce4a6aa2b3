"""Activations computed again in the backward pass: the same experts, whatever rounding does to near ties."""

import numpy as np
import pytest
import torch
from tests.moe.routers import samples
from tests.training.one_step import batch, decoder
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.models import Decoder
from moekit.moe import Decision, RouterInput

pytestmark = pytest.mark.processor

TOKENS = 20


@pytest.fixture
def shake() -> np.random.Generator:
    """Not torch's random numbers: those a checkpoint puts back."""
    return np.random.default_rng(0)


def mismatches(kind: str, steps: int, shake: np.random.Generator, *, decide: bool) -> int:
    """In how many of the steps the recomputation chose other experts than the first pass."""
    router = samples.router(kind, **samples.dropless(kind))
    samples.make_shaky(router, shake)
    passes: list[tuple[object, list[int]]] = []
    token_T = torch.arange(TOKENS) * 3 % samples.VOCAB
    x_TD = torch.randn(TOKENS, samples.WIDTH, dtype=torch.float64, requires_grad=True)

    def weights(x_TD: Tensor, given: RouterInput) -> Tensor:
        assignments = router(x_TD, given).assignments
        passes.append((assignments.expert_offsets, assignments.token_S.tolist()))
        return assignments.weight_S.square().sum()

    for _ in range(steps):
        given = RouterInput(token_T=token_T, decision=Decision() if decide else None)
        checkpoint(weights, x_TD, given, use_reentrant=False).backward()
    assert len(passes) == 2 * steps
    return sum(first != again for first, again in zip(passes[::2], passes[1::2], strict=True))


def test_10000_near_ties_fall_the_same_way(shake: np.random.Generator) -> None:
    assert mismatches("softmax_top_k", 10_000 // TOKENS, shake, decide=True) == 0


@pytest.mark.parametrize("kind", samples.LEARNED)
def test_near_ties_fall_the_same_way_for_every_router(kind: str, shake: np.random.Generator) -> None:
    assert mismatches(kind, 50, shake, decide=True) == 0


@pytest.mark.parametrize("kind", ["softmax_top_k", "switch", "sigmoid_bias", "sinkhorn"])
def test_without_a_decision_they_would_not(kind: str, shake: np.random.Generator) -> None:
    """The negative control of the two tests above."""
    assert mismatches(kind, 50, shake, decide=False) > 40


def gradients(model: Decoder, *, recompute: bool) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The gradients of log_prob and of the routers' losses, and the sums, always with the same random numbers."""
    tokens_BT, real_BT = batch()
    routings: list = []
    torch.manual_seed(11)
    log_prob_BT = model.log_prob(tokens_BT, routings, real_BT=real_BT, recompute=recompute)
    loss = -log_prob_BT.masked_fill(~real_BT[:, 1:], 0).mean()
    for layer, routing in zip(model.moe_layers, routings, strict=True):
        loss = loss + sum(layer.router.losses(routing.sums).values())
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, [routing.sums for routing in routings]


@pytest.mark.parametrize(
    "kind", ["softmax_top_k", "noisy_top_k", "switch", "gshard", "sigmoid_bias", "hash", "sinkhorn"]
)
def test_gradients_and_sums_are_those_of_kept_activations(kind: str) -> None:
    """With noise, jitter and a capacity that drops: what was drawn in the first pass is drawn again."""
    model = decoder(kind, kind, **({"jitter": 0.1} if kind == "switch" else {}), capacity_factor=0.75)
    kept, sums = gradients(model, recompute=False)
    again, sums_again = gradients(model, recompute=True)
    assert kept.keys() == again.keys()
    for name in kept:
        torch.testing.assert_close(again[name], kept[name], rtol=1e-12, atol=1e-15)
    for own, wanted in zip(sums_again, sums, strict=True):
        assert own.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(own[name], wanted[name]), name


def test_a_bias_is_not_moved_by_recomputation_nor_by_evaluation() -> None:
    model = decoder("sigmoid_bias", "sigmoid_bias")
    gradients(model, recompute=True)
    model.eval()
    with torch.no_grad():
        model(batch()[0][:, :-1])
    for layer in model.moe_layers:
        assert not layer.router.bias_E.any()


def test_near_ties_in_a_whole_model_give_gradients_of_the_first_pass(shake: np.random.Generator) -> None:
    """Each expert's gradient is zero where, and only where, the first pass gave it nothing."""
    model = decoder("softmax_top_k", top_k=1, renormalize=False)
    router = model.moe_layers[0].router
    samples.make_shaky(router, shake)
    tokens_BT = batch()[0][:1, :4]
    for _ in range(20):
        routings: list = []
        model.zero_grad()
        model.log_prob(tokens_BT, routings, recompute=True).sum().backward()
        grad = model.moe_layers[0].experts.down_EDF.grad
        assert grad is not None
        assert torch.equal(grad.flatten(1).any(1), routings[0].counts_E > 0)
