"""Gradients of the weights and of every auxiliary loss against finite differences, the choices held by a Decision."""

import pytest
import torch
from tests.moe.routers import samples
from torch import Tensor

from moekit.core.errors import UsageError
from moekit.moe import Decision, RouterInput

TOKENS = 5
REAL_T = torch.tensor([True, True, False, True, True])
VARIANTS = [
    *((kind, {}) for kind in samples.LEARNED),
    ("softmax_top_k", {"renormalize": False}),
    ("softmax_top_k", {"capacity_factor": 0.5}),
    ("sigmoid_bias", {"renormalize": False, "scale": 2.5}),
    ("sigmoid_bias", {"top_k": 1, "renormalize": False}),
    ("sinkhorn", {"top_k": 1}),
    ("gshard", {"capacity_factor": None, "second_threshold": 0.0}),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_gradients_are_those_of_finite_differences(kind: str, changes: dict[str, object], masked: bool) -> None:
    router = samples.router(kind, **changes)
    names = [name for name, _ in router.named_parameters()]
    x_TD = torch.randn(TOKENS, samples.WIDTH, dtype=torch.float64, requires_grad=True)
    decision = Decision()
    outputs: list[str] = []

    def routed(x_TD: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        given = samples.given(TOKENS, real_T=REAL_T if masked else None, decision=decision)
        routing = torch.func.functional_call(router, dict(zip(names, parameters, strict=True)), (x_TD, given))
        losses = samples.unscaled_losses(router, routing.sums)
        outputs[:] = ["weights", *losses]
        return routing.assignments.weight_S, *losses.values()

    assert torch.autograd.gradcheck(routed, (x_TD, *router.parameters()))
    assert outputs == ["weights", *router.coefficients]


@pytest.mark.parametrize("kind", ["softmax_top_k", "switch", "gshard"])
def test_the_balance_loss_has_its_gradient_from_the_probabilities_alone(kind: str) -> None:
    """d/dp_ti = E · f_i / T: more for experts with more choices."""
    router = samples.router(kind, **samples.dropless(kind))
    sums = router(torch.randn(TOKENS, samples.WIDTH, dtype=torch.float64), samples.given(TOKENS)).sums
    probs_E = sums["probs"].detach().requires_grad_()
    loss = samples.unscaled_losses(router, sums | {"probs": probs_E})["balance"]
    (gradient_E,) = torch.autograd.grad(loss, probs_E)
    count_E = sums["first_choices" if kind == "gshard" else "chosen"]
    torch.testing.assert_close(gradient_E, 4 * count_E / count_E.sum() / TOKENS, check_dtype=False)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(kind, {}) for kind in samples.LEARNED]
    + [("softmax_top_k", {"top_k": 1, "renormalize": False}), ("sinkhorn", {"top_k": 1})]
    + [("sigmoid_bias", {"top_k": 1, "renormalize": False})],
)
@pytest.mark.parametrize("training", [True, False])
def test_every_router_learns_from_the_task_through_its_weights(
    kind: str, changes: dict[str, object], training: bool
) -> None:
    """Each expert that computes something has a gradient in its row of the router, with no auxiliary loss."""
    router = samples.router(kind, **changes).train(training)
    x_TD = torch.randn(40, samples.WIDTH, dtype=torch.float64)
    routing = router(x_TD, samples.given(40))
    value_S = torch.randn_like(routing.assignments.weight_S)  # what the experts' outputs are worth to the task
    (routing.assignments.weight_S * value_S).sum().backward()
    for name, parameter in router.named_parameters():
        if name == "noise_weight" and not training:
            continue
        assert parameter.grad is not None
        of_row_E = parameter.grad.norm(dim=1)
        assert (of_row_E[routing.counts_E > 0] > 1e-6 * of_row_E.max()).all(), name
        assert of_row_E.max() > 1e-3


def test_a_renormalised_top_1_would_not_learn() -> None:
    """The negative control: what training refuses. Running it is fine: its weights are exactly 1."""
    router = samples.router("softmax_top_k", top_k=1)
    weight_S = router(torch.randn(40, samples.WIDTH, dtype=torch.float64)).assignments.weight_S
    assert torch.equal(weight_S, torch.ones_like(weight_S))
    (weight_S * torch.randn(40)).sum().backward()
    assert router.weight.grad is not None
    assert router.weight.grad.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["softmax_top_k", "sigmoid_bias", "noisy_top_k"])
def test_a_router_that_never_learns_runs_and_is_not_trained(kind: str) -> None:
    router = samples.router(kind, top_k=1).eval()
    weight_S = router(torch.randn(40, samples.WIDTH, dtype=torch.float64)).assignments.weight_S
    torch.testing.assert_close(weight_S, torch.ones_like(weight_S), rtol=1e-15, atol=0)
    with pytest.raises(UsageError, match=r"weighs its expert 1\.0 and so never learns; set ") as caught:
        torch.nn.Sequential(router).train()
    assert "\n" not in str(caught.value)
    assert not router.training
    # Frozen, it does not have to learn.
    assert router.requires_grad_(False).train().training


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(kind, {}) for kind in samples.KINDS]
    + [("softmax_top_k", {"top_k": 1, "renormalize": False}), ("sigmoid_bias", {"top_k": 1, "renormalize": False})]
    + [("sinkhorn", {"top_k": 1})],
)
def test_every_other_router_is_trained(kind: str, changes: dict[str, object]) -> None:
    assert samples.router(kind, **changes).eval().train().training


def test_what_is_dropped_gets_no_gradient_from_the_task() -> None:
    router = samples.router("switch", jitter=0.0, capacity_factor=0.5)
    x_TD = torch.randn(12, samples.WIDTH, dtype=torch.float64, requires_grad=True)
    routing = router(x_TD, RouterInput())
    routing.assignments.weight_S.sum().backward()
    assert x_TD.grad is not None
    kept = set(routing.assignments.token_S.tolist())
    assert 0 < len(kept) < 12
    assert {t for t in range(12) if x_TD.grad[t].any()} == kept
