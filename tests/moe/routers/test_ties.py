"""Where scores tie exactly, any of the tied experts may be chosen, but as many as the router says, each once."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.moe.routers import samples

TIED = [kind for kind in samples.TOKEN_CHOICE if kind != "hash"]


@pytest.mark.parametrize("kind", TIED)
@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 9),
    copies=st.lists(st.integers(0, 2), min_size=2, max_size=7),
    k=st.integers(1, 7),
    training=st.booleans(),
    seed=st.integers(0, 999),
)
def test_tied_experts_are_chosen_once_each(kind: str, tokens: int, copies: list[int], k: int, **rest: Any) -> None:
    """Experts that copy one of three rows of weights (copies[i] = 0: all zero), so that their scores are equal."""
    experts = len(copies)
    k = {"switch": 1, "gshard": 2}.get(kind, max(2, min(k, experts)))
    changes = {"top_k": k} if "top_k" in samples.KINDS[kind] else {}
    if kind == "gshard":
        changes["second_threshold"] = 0.0
    torch.manual_seed(rest["seed"])
    router = samples.router(kind, experts, **changes, **samples.dropless(kind)).train(rest["training"])
    rows = torch.randn(3, samples.WIDTH, dtype=torch.float64)
    rows[0] = 0
    with torch.no_grad():
        router.weight.copy_(rows[copies])
    routing = router(torch.randn(tokens, samples.WIDTH, dtype=torch.float64), samples.given(tokens))
    chosen: list[dict[int, float]] = [{} for _ in range(tokens)]
    for expert, token, weight in samples.listed(routing):
        assert expert not in chosen[token]
        chosen[token][expert] = weight
    for weights in chosen:
        assert len(weights) == k
    if kind == "noisy_top_k" and router.training:
        return  # noise breaks the ties
    for row, weights in zip(routing.probs_TE.tolist(), chosen, strict=True):
        for expert, weight in weights.items():
            for other, its in weights.items():
                assert copies[expert] != copies[other] or weight == pytest.approx(its, rel=1e-12)
            # Nobody who was left out scores more, unless Sinkhorn wants it so.
            left_out = [p for i, p in enumerate(row) if i not in weights]
            assert kind in ("sinkhorn", "switch") or not left_out or row[expert] >= max(left_out) - 1e-12


@pytest.mark.parametrize("kind", TIED)
def test_a_router_of_zeros_works(kind: str) -> None:
    """As noisy top-k starts; all scores are equal, in evaluation all tokens may go to the same experts."""
    router = samples.router(kind, **samples.dropless(kind)).eval()
    with torch.no_grad():
        router.weight.zero_()
    k = 1 if kind == "switch" else 2
    weights = [weight for *_, weight in samples.listed(router(torch.randn(6, samples.WIDTH), samples.given(6)))]
    assert len(weights) == 6 * k
    assert len(set(weights)) == 1


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(1, 12), mean=st.integers(1, 4), seed=st.integers(0, 99))
def test_expert_choice_takes_each_tied_token_once(tokens: int, mean: int, seed: int) -> None:
    """All tokens are equal: each expert still takes ceil(T · c / E) different ones."""
    torch.manual_seed(seed)
    router = samples.router("expert_choice", mean_experts=mean)
    routing = router(torch.randn(1, samples.WIDTH, dtype=torch.float64).expand(tokens, -1))
    pairs = [pair[:2] for pair in samples.listed(routing)]
    assert len(pairs) == len(set(pairs)) == 4 * -(-tokens * mean // 4)
    assert len({round(weight, 12) for expert, _, weight in samples.listed(routing) if expert == 0}) == 1


def test_a_full_expert_takes_the_first_tokens_and_not_the_surest() -> None:
    router = samples.router("switch", jitter=0.0, capacity_factor=1.0)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[2, 0] = 1.0
    x_TD = torch.zeros(8, samples.WIDTH, dtype=torch.float64)
    x_TD[:, 0] = torch.arange(1, 9)  # all prefer expert 2, later ones more
    assert [pair[:2] for pair in samples.listed(router(x_TD))] == [(2, 0), (2, 1)]


@pytest.mark.parametrize(("kind", "kept"), [("softmax_top_k", {0, 1}), ("gshard", {2, 3})])
def test_gshard_lets_first_choices_go_before_second_ones(kind: str, kept: set[int]) -> None:
    """Expert 0 is the second choice of tokens 0 and 1, the first of tokens 2 and 3, and takes two."""
    changes = {"second_threshold": 0.0} if kind == "gshard" else {}
    router = samples.router(kind, capacity_factor=1.0, **changes)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4, samples.WIDTH))
    x_TD = torch.zeros(4, samples.WIDTH, dtype=torch.float64)
    x_TD[:, :4] = torch.tensor([[1.0, 2, 0, 0], [1, 0, 2, 0], [2, 1, 0, 0], [2, 0, 1, 0]])
    assert {token for expert, token, _ in samples.listed(router(x_TD)) if expert == 0} == kept
