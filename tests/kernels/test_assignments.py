"""Sorting assignments: against an obvious loop, for lists of every shape.

Legend: S assignments, T tokens, E experts, K experts per token.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from moekit.kernels.assignments import Assignments, assign, assign_top_k


def by_loop(token_S: Tensor, expert_S: Tensor, weight_S: Tensor, tokens: int, experts: int) -> Assignments:
    """The definition, written out: experts in turn, for each the tokens in turn, equals in the order given."""
    order = [
        s
        for expert in range(experts)
        for token in range(tokens)
        for s in range(len(token_S))
        if expert_S[s] == expert and token_S[s] == token
    ]
    offsets = [0]
    for expert in range(experts):
        offsets.append(offsets[-1] + sum(int(e) == expert for e in expert_S))
    slots, token_offsets = [], []
    for token in range(tokens):
        token_offsets.append(len(slots))
        slots += [order.index(s) for s in range(len(token_S)) if token_S[s] == token]
    ids = torch.tensor(order, dtype=torch.int64)
    return Assignments(
        token_S[ids],
        weight_S[ids],
        tuple(offsets),
        torch.tensor(slots, dtype=torch.int64),
        torch.tensor(token_offsets, dtype=torch.int64),
    )


def assert_same(actual: Assignments, expected: Assignments) -> None:
    for name, a, b in zip(Assignments._fields, actual, expected, strict=True):
        if isinstance(b, tuple):
            assert a == b, name
        else:
            assert_close(a, b, rtol=0, atol=0, msg=name)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(0, 9), experts=st.integers(1, 5), data=st.data())
def test_any_list_is_sorted_by_expert_then_token(seed: int, tokens: int, experts: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 20 if tokens else 0))
    rng = torch.Generator().manual_seed(seed)
    token_S = torch.randint(max(tokens, 1), (size,), generator=rng)
    expert_S = torch.randint(experts, (size,), generator=rng)
    weight_S = torch.rand(size, generator=rng)
    actual = assign(token_S, expert_S, weight_S, tokens=tokens, experts=experts)
    assert_same(actual, by_loop(token_S, expert_S, weight_S, tokens, experts))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(0, 9), experts=st.integers(1, 6), data=st.data())
def test_top_k_is_the_same_list(seed: int, tokens: int, experts: int, data: st.DataObject) -> None:
    per_token = data.draw(st.integers(1, experts))
    rng = torch.Generator().manual_seed(seed)
    weight_TK, expert_TK = torch.rand(tokens, experts, generator=rng).topk(per_token)
    token_S = torch.arange(tokens).repeat_interleave(per_token)
    expected = by_loop(token_S, expert_TK.flatten(), weight_TK.flatten(), tokens, experts)
    assert_same(assign_top_k(expert_TK, weight_TK, experts=experts), expected)


@pytest.mark.parametrize("experts", [2**8, 2**8 + 1, 2**16, 2**16 + 1])
def test_ids_near_the_limits_of_narrow_integers(experts: int) -> None:
    expert_S = torch.tensor([experts - 1, 0, experts - 2, experts - 1, 1])
    token_S = torch.arange(5)
    actual = assign(token_S, expert_S, torch.arange(5.0), tokens=5, experts=experts)
    assert actual.weight_S.tolist() == [1, 4, 2, 0, 3]


@pytest.mark.parametrize("top_k", [False, True])
def test_gradients_return_to_the_weights_they_belong_to(top_k: bool) -> None:
    expert_TK = torch.tensor([[2, 0], [1, 2], [0, 2]])
    weight_TK = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    if top_k:
        assignments = assign_top_k(expert_TK, weight_TK, experts=3)
    else:
        token_S = torch.arange(3).repeat_interleave(2)
        assignments = assign(token_S, expert_TK.flatten(), weight_TK.flatten(), tokens=3, experts=3)
    # a factor that names the expert and the token of each assignment
    expert_S = torch.repeat_interleave(torch.tensor(assignments.expert_offsets).diff())
    (assignments.weight_S * (10 * expert_S + assignments.token_S)).sum().backward()
    assert weight_TK.grad is not None
    assert weight_TK.grad.tolist() == [[20, 0], [11, 21], [2, 22]]
