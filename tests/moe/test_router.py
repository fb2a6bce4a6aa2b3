"""The softmax top-k router against a scalar loop written from its equation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.config import MoEConfig, SoftmaxTopKConfig
from moekit.moe import Routing, SoftmaxTopK, load_balancing_loss, z_loss


def make_router(experts: int, top_k: int, renormalize: bool, width: int = 5) -> SoftmaxTopK:
    config = MoEConfig(experts=experts, expert_width=4, router=SoftmaxTopKConfig(top_k=top_k, renormalize=renormalize))
    router = SoftmaxTopK(width, config).double()
    torch.nn.init.normal_(router.weight)
    return router


def loop_route(
    x_TD: Tensor, weight_ED: Tensor, top_k: int, renormalize: bool
) -> tuple[list[list[float]], dict[tuple[int, int], float]]:
    """Probabilities, and the weight of each (expert, token) that was chosen."""
    probabilities, chosen = [], {}
    for token, x in enumerate(x_TD.tolist()):
        logits = [sum(a * b for a, b in zip(row, x, strict=True)) for row in weight_ED.tolist()]
        largest = max(logits)
        exponentials = [math.exp(value - largest) for value in logits]
        p = [value / sum(exponentials) for value in exponentials]
        probabilities.append(p)
        best = sorted(range(len(p)), key=lambda expert: -p[expert])[:top_k]
        total = sum(p[expert] for expert in best) if renormalize else 1.0
        for expert in best:
            chosen[expert, token] = p[expert] / total
    return probabilities, chosen


def as_pairs(routing: Routing) -> dict[tuple[int, int], float]:
    """The weight of each (expert, token) of a Routing."""
    pairs = {}
    offsets = routing.assignments.expert_offsets
    for expert in range(len(offsets) - 1):
        for position in range(offsets[expert], offsets[expert + 1]):
            token = int(routing.assignments.token_S[position])
            pairs[expert, token] = routing.assignments.weight_S[position].item()
    return pairs


@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 9),
    experts=st.integers(2, 7),
    top_k=st.integers(1, 7),
    renormalize=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(seed: int, tokens: int, experts: int, top_k: int, renormalize: bool) -> None:
    top_k = min(top_k, experts)
    renormalize = renormalize and top_k > 1
    torch.manual_seed(seed)
    router = make_router(experts, top_k, renormalize)
    x_TD = torch.randn(tokens, 5, dtype=torch.float64)
    routing = router(x_TD)
    probabilities, chosen = loop_route(x_TD, router.weight.detach(), top_k, renormalize)
    got = as_pairs(routing)
    assert got.keys() == chosen.keys()
    assert all(got[pair] == pytest.approx(chosen[pair], rel=1e-12) for pair in chosen)
    torch.testing.assert_close(
        routing.probs_TE, torch.tensor(probabilities, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    assert routing.counts_E.tolist() == [sum(pair[0] == e for pair in chosen) for e in range(experts)]


@pytest.mark.parametrize("renormalize", [True, False])
def test_gradient_of_the_weights(renormalize: bool) -> None:
    router = make_router(4, 2, renormalize)
    x_TD = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: router(x).assignments.weight_S, x_TD)


def test_a_renormalised_top_1_would_not_learn() -> None:
    """Why the configuration refuses it: the weight is 1 whatever the router says, its gradient exactly 0."""
    router = make_router(4, 1, renormalize=False)
    x_TD = torch.randn(6, 5, dtype=torch.float64)
    router(x_TD).assignments.weight_S.sum().backward()
    assert router.weight.grad is not None
    assert router.weight.grad.abs().max() > 0
    probs = (x_TD @ router.weight.detach().T).requires_grad_().softmax(-1).topk(1).values
    assert (probs / probs.sum(-1, keepdim=True)).unique().tolist() == [1.0]


def test_routes_in_fp32_under_bf16() -> None:
    """Two experts whose logits differ by less than bf16 can tell: the larger one must win."""
    router = make_router(2, 1, renormalize=False).float()
    with torch.no_grad():
        router.weight[:] = torch.tensor([[1.0, 0, 0, 0, 0], [1.0 + 1e-4, 0, 0, 0, 0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(torch.ones(3, 5))
    assert routing.counts_E.tolist() == [0, 3]
    assert routing.probs_TE.dtype == torch.float32


def test_losses_only_in_training() -> None:
    router = make_router(4, 2, renormalize=True)
    x_TD = torch.randn(6, 5, dtype=torch.float64)
    assert set(router.train()(x_TD).losses) == {"balance", "z"}
    assert router.eval()(x_TD).losses == {}


def test_balance_loss_equals_the_loop() -> None:
    """E · sum f_i P_i with f_i over all choices; 1 when balanced, E / K when all go to the same K."""
    probs = torch.rand(7, 4, dtype=torch.float64).softmax(-1)
    counts = torch.tensor([5, 0, 8, 1])
    expected = 4 * sum((int(counts[i]) / 14) * sum(float(p[i]) for p in probs) / 7 for i in range(4))
    assert float(load_balancing_loss(probs, counts)) == pytest.approx(expected, rel=1e-12)
    even = torch.full((7, 4), 0.25, dtype=torch.float64)
    assert float(load_balancing_loss(even, torch.tensor([3, 3, 3, 3]))) == pytest.approx(1.0)
    collapsed = torch.tensor([[0.5, 0.5, 0, 0]], dtype=torch.float64)
    assert float(load_balancing_loss(collapsed, torch.tensor([1, 1, 0, 0]))) == pytest.approx(4 / 2)
    assert float(load_balancing_loss(probs, torch.zeros(4, dtype=torch.int64))) == 0


def test_z_loss_equals_the_loop() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64)
    expected = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits.tolist()) / 5
    assert float(z_loss(logits)) == pytest.approx(expected, rel=1e-12)
