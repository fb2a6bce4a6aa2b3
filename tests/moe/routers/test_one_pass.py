"""Routers whose choice is one compiled operation, against the same router as torch composes it: all that they give."""

from typing import Any

import pytest
import torch
from tests.moe.routers import samples
from torch import Tensor

from moekit.kernels.training.compiled import trains
from moekit.moe import Decision, Router, RouterInput, Routing
from moekit.moe.routers import choice, sigmoid, softmax

pytestmark = [pytest.mark.processor, pytest.mark.skipif(not trains(), reason="moekit was not compiled")]

ROUTERS = [
    ("softmax_top_k", {}),
    ("softmax_top_k", {"top_k": 1, "renormalize": False}),
    ("softmax_top_k", {"top_k": 5, "z_loss": 0.0}),
    ("softmax_top_k", {"capacity_factor": 0.7}),
    ("sigmoid_bias", {}),
    ("sigmoid_bias", {"renormalize": False, "scale": 2.5, "z_loss": 0.0}),
    ("sigmoid_bias", {"groups": 2, "top_groups": 1}),
]


def outcome(router: Router, x_TD: Tensor, given: RouterInput) -> tuple[Routing, list[Tensor]]:
    """The Routing, and the gradients of a task that weighs all of it, for x and W."""
    x_TD = x_TD.clone().requires_grad_()
    routing = router(x_TD, given)
    weight_S = routing.assignments.weight_S
    loss = (weight_S * torch.linspace(-1, 1, len(weight_S))).sum()
    if router.training:
        loss = loss + sum(router.losses(routing.sums).values())
    return routing, list(torch.autograd.grad(loss, [x_TD, router.weight]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "changes"), ROUTERS)
def test_a_router_gives_what_the_composition_gives(
    kind: str, changes: dict[str, Any], training: bool, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = samples.router(kind, experts=6, **changes).float().train(training)
    if kind == "sigmoid_bias":
        router.bias_E.copy_(torch.linspace(-0.3, 0.3, 6))
    x_TD = torch.randn(50, samples.WIDTH)
    real_T = torch.arange(50) % 5 > 0 if masked else None
    used = []
    for module in (softmax, sigmoid):
        monkeypatch.setattr(module, "fits", lambda logits_TE: used.append(choice.fits(logits_TE)) or used[-1])
    decision = Decision()
    got, gradients = outcome(router, x_TD, samples.given(50, real_T=real_T, decision=decision))
    assert all(used)
    assert bool(used) == ("groups" not in changes)
    assert decision.chosen is not None
    for module in (softmax, sigmoid):
        monkeypatch.setattr(module, "fits", lambda logits_TE: False)
    wanted, exact = outcome(router, x_TD, samples.given(50, real_T=real_T))
    assert [pair[:2] for pair in samples.listed(got)] == [pair[:2] for pair in samples.listed(wanted)]
    torch.testing.assert_close(got.assignments.weight_S, wanted.assignments.weight_S, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got.counts_E, wanted.counts_E)
    torch.testing.assert_close(got.probs_TE, wanted.probs_TE, rtol=1e-5, atol=1e-7)
    assert got.sums.keys() == wanted.sums.keys()
    for name, value in wanted.sums.items():
        torch.testing.assert_close(got.sums[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for own, value in zip(gradients, exact, strict=True):
        assert (own - value).norm() <= 1e-5 * value.norm()


@pytest.mark.parametrize("kind", ["softmax_top_k", "sigmoid_bias"])
def test_a_decision_is_obeyed_by_another_pass(kind: str) -> None:
    router = samples.router(kind, experts=6).float()
    real_T, decision = torch.arange(30) % 5 > 0, Decision()
    first = router(torch.randn(30, samples.WIDTH), RouterInput(real_T=real_T, decision=decision))
    assert (decision.chosen[~real_T] == -1).all()
    again = router(torch.randn(30, samples.WIDTH), RouterInput(real_T=real_T, decision=decision))
    assert [pair[:2] for pair in samples.listed(again)] == [pair[:2] for pair in samples.listed(first)]
    assert torch.equal(again.sums["chosen"], first.sums["chosen"])
