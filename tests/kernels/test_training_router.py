"""A router's compiled parts against loops over Python floats and against autograd's gradients of torch's composition.

T tokens, D model width, E experts, K experts per token.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.instruction_sets import using_instruction_set
from torch import Tensor

from moekit.kernels.native.module import native
from moekit.kernels.training.compiled import trains
from moekit.kernels.training.router_passes import (
    Choice,
    ChoiceRule,
    router_choose,
    router_grad_weight,
    router_grad_x,
    router_logits,
    sort_choices,
)
from moekit.moe.routers.choice import choose_scored

pytestmark = [pytest.mark.processor, pytest.mark.skipif(not trains(), reason="moekit was not compiled")]

SOFTMAX = ChoiceRule(2)
RULES = [
    ChoiceRule(3),
    ChoiceRule(3, renormalize=True),
    ChoiceRule(3, sigmoid=True, scale=2.5),
    ChoiceRule(3, sigmoid=True, renormalize=True, epsilon=1e-20, scale=0.5),
]


@pytest.fixture(params=native().instruction_sets() if trains() else [])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with using_instruction_set(request.param) as name:
        yield name


def far(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("experts", [1, 3, 8, 16, 17, 33, 257])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (5, 6), (8, 16), (13, 45), (531, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_exact_to_the_rounding_of_fp32(tokens: int, width: int, experts: int, dtype: torch.dtype) -> None:
    x_TD, weight_ED = torch.randn(tokens, width).to(dtype), torch.randn(experts, width)
    logits_TE = router_logits(x_TD, weight_ED)
    grad_TE = torch.randn_like(logits_TE)
    exact = x_TD.double(), weight_ED.double(), grad_TE.double()
    assert far(logits_TE, exact[0] @ exact[1].t()) < 1e-6
    # The gradient of a bf16 x may be computed from bf16 numbers: it is rounded to them anyway.
    of_x = 1e-6 if dtype == torch.float32 else 5e-3
    assert far(router_grad_weight(grad_TE, x_TD), exact[2].t() @ exact[0]) < 1e-6
    # beside the size of what is added up: where there is one number, it may cancel
    error_TD = router_grad_x(grad_TE, weight_ED, dtype) - exact[2] @ exact[1]
    assert error_TD.norm() < of_x * (exact[2].abs() @ exact[1].abs()).norm()


def test_what_a_tokens_logits_are_depends_on_no_other_token() -> None:
    x_TD, weight_ED = torch.randn(77, 40).bfloat16(), torch.randn(20, 40)
    logits_TE = router_logits(x_TD, weight_ED)
    for begin, end in ((0, 1), (3, 5), (9, 40), (76, 77)):
        assert torch.equal(router_logits(x_TD[begin:end].contiguous(), weight_ED), logits_TE[begin:end])


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_tokens(tokens: int) -> None:
    x_TD, weight_ED = torch.randn(tokens, 5), torch.randn(3, 5)
    logits_TE = router_logits(x_TD, weight_ED)
    choice = router_choose(SOFTMAX, logits_TE, None, None, None, with_log_sum=True)
    assert choice.tokens == tokens == choice.expert_TK.shape[0]
    assert choice.chosen_E.sum() == 2 * tokens
    assert router_grad_weight(logits_TE, x_TD).any() == (tokens > 0)
    assert router_grad_x(logits_TE, weight_ED, torch.bfloat16).shape == (tokens, 5)
    assert sort_choices(choice.expert_TK, 3)[-1][-1] == 2 * tokens


def best(scores: list[float], k: int) -> list[int]:
    """The k largest, the largest first, of equal ones the one with the lower id; NaN before all."""
    return sorted(range(len(scores)), key=lambda e: (not math.isnan(scores[e]), -scores[e], e))[:k]


def by_loop(rule: ChoiceRule, logits: list[list[float]], bias: list[float], real: list[bool]) -> dict[str, list]:
    """What is chosen, its weights and scores, token by token."""
    found: dict[str, list] = {"expert": [], "weight": [], "score": [], "log_sum": []}
    for row, counts in zip(logits, real, strict=True):
        top = max(row)
        log_sum = top + math.log(math.fsum(math.exp(z - top) for z in row))
        score = [1 / (1 + math.exp(-z)) if rule.sigmoid else math.exp(z - log_sum) for z in row]
        by = [s + b for s, b in zip(score, bias, strict=True)] if rule.sigmoid else row
        ids = best(by, rule.top_k)
        total = math.fsum(score[e] for e in ids) + rule.epsilon if rule.renormalize else 1.0
        found["expert"].append(ids if counts else [-1] * rule.top_k)
        found["weight"].append([score[e] / total * rule.scale if counts else 0.0 for e in ids])
        found["score"].append(score)
        found["log_sum"].append(log_sum)
    return found


def check_choice(choice: Choice, logits: list[list[float]], expected: dict[str, list], real: list[bool]) -> None:
    rows = [t for t, counts in enumerate(real) if counts]
    assert choice.expert_TK.tolist() == expected["expert"]
    for name, got in (("weight", choice.weight_TK), ("score", choice.score_TE), ("log_sum", choice.log_sum_T)):
        torch.testing.assert_close(got.double(), torch.tensor(expected[name]).double(), rtol=1e-5, atol=1e-6, msg=name)
    experts = len(logits[0])
    assert choice.chosen_E.tolist() == [sum(ids.count(e) for ids in expected["expert"]) for e in range(experts)]
    sums = [math.fsum(expected["score"][t][e] for t in rows) for e in range(experts)]
    assert choice.score_sums_E.tolist() == pytest.approx(sums, rel=1e-5, abs=1e-6)
    assert choice.tokens == len(rows)
    assert choice.top_scores == pytest.approx(math.fsum(max(expected["score"][t]) for t in rows), rel=1e-5)
    assert choice.logit_squares == pytest.approx(math.fsum(z * z for t in rows for z in logits[t]), rel=1e-5)
    squares = math.fsum(expected["log_sum"][t] ** 2 for t in rows)
    assert choice.log_sum_squares == pytest.approx(squares, rel=1e-5, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.sampled_from([1, 3, 16, 17, 45, 300]),
    experts=st.sampled_from([1, 2, 5, 8, 16, 19, 64, 257]),
    data=st.data(),
    rule=st.sampled_from(RULES),
    levels=st.sampled_from([None, 1, 4]),
    masked=st.booleans(),
)
def test_a_choice_is_that_of_the_loop(
    tokens: int, experts: int, data: st.DataObject, rule: ChoiceRule, levels: int | None, masked: bool
) -> None:
    """With few levels there are ties everywhere; K reaches from 1 to E."""
    rule = rule._replace(top_k=data.draw(st.sampled_from(sorted({1, min(2, experts), min(9, experts), experts}))))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits_TE = torch.randn(tokens, experts, generator=rng) * 3
    bias_E = torch.randn(experts, generator=rng)
    if levels is not None:
        logits_TE = torch.randint(levels, (tokens, experts), generator=rng) - 1.0
        bias_E = torch.zeros(experts)
    real_T = torch.rand(tokens, generator=rng) < 0.7 if masked else torch.ones(tokens, dtype=torch.bool)
    for name in native().instruction_sets():
        with using_instruction_set(name):
            choice = router_choose(
                *(rule, logits_TE, bias_E if rule.sigmoid else None, real_T if masked else None, None),
                with_log_sum=True,
            )
        expected = by_loop(rule, logits_TE.tolist(), bias_E.tolist(), real_T.tolist())
        check_choice(choice, logits_TE.tolist(), expected, real_T.tolist())


@pytest.mark.usefixtures("instruction_set")
def test_what_is_not_finite_is_chosen_as_torch_would() -> None:
    """NaN above all, then by size; each expert once; and both zeros are the same."""
    nan, inf = math.nan, math.inf
    rows = [[1.0, nan, inf, -inf], [nan, nan, nan, nan], [-inf, -inf, 0.0, -0.0], [-0.0, 0.0, -1.0, -inf]]
    rule = ChoiceRule(4)
    choice = router_choose(rule, torch.tensor(rows), None, None, None, with_log_sum=False)
    assert choice.expert_TK.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3], [2, 3, 0, 1], [0, 1, 2, 3]]
    assert choice.score_TE[0].isnan().all()
    assert choice.score_sums_E.isnan().all()
    assert math.isnan(choice.top_scores)
    torch.testing.assert_close(choice.score_TE[2:], torch.tensor(rows[2:]).softmax(-1), rtol=1e-6, atol=0)


def test_a_choice_is_torchs_where_scores_differ() -> None:
    logits_TE = torch.randn(4000, 32)
    for rule in RULES:
        choice = router_choose(rule, logits_TE, None, None, None, with_log_sum=False)
        score_TE = logits_TE.sigmoid() if rule.sigmoid else logits_TE.softmax(-1)
        top = score_TE.topk(4)
        apart_T = (top.values.diff().abs() > 1e-6 * top.values[:, :1]).all(1)
        assert apart_T.sum() > 3900
        assert torch.equal(choice.expert_TK[apart_T], top.indices[apart_T, :3])


def test_what_was_decided_stays() -> None:
    logits_TE, real_T = torch.randn(40, 9), torch.arange(40) % 3 > 0
    first = router_choose(SOFTMAX, logits_TE, None, real_T, None, with_log_sum=False)
    decided_TK = first.expert_TK.clone()
    again = router_choose(SOFTMAX, -logits_TE, None, real_T, decided_TK, with_log_sum=False)
    assert torch.equal(again.expert_TK, first.expert_TK)
    assert torch.equal(decided_TK, first.expert_TK)
    assert torch.equal(again.chosen_E, first.chosen_E)
    expected_TK = (-logits_TE).softmax(-1).gather(1, decided_TK.clamp(min=0)).masked_fill(~real_T[:, None], 0)
    torch.testing.assert_close(again.weight_TK, expected_TK)
    with pytest.raises(ValueError, match="no expert of that number"):
        router_choose(SOFTMAX, logits_TE, None, None, torch.full((40, 2), 9), with_log_sum=False)


def composed(
    rule: ChoiceRule, logits_TE: Tensor, real_T: Tensor, expert_TK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, scores, their sums, and the sum of logsumexp², as torch composes them."""
    score_TE = logits_TE.sigmoid() if rule.sigmoid else logits_TE.softmax(-1)
    weight_TK = score_TE.gather(1, expert_TK.clamp(min=0))
    if rule.renormalize:
        weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + rule.epsilon)
    weight_TK = (weight_TK * rule.scale).masked_fill(~real_T[:, None], 0)
    sums_E = score_TE.masked_fill(~real_T[:, None], 0).sum(0)
    squares = logits_TE.logsumexp(-1).square().masked_fill(~real_T, 0).sum()
    return weight_TK, score_TE.masked_fill(~real_T[:, None], 0), sums_E, squares


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("outputs", [{0}, {1}, {2}, {3}, {0, 1, 2, 3}], ids=str)
def test_every_gradient_is_that_of_the_composition(rule: ChoiceRule, masked: bool, outputs: set[int]) -> None:
    """Of the weights, the scores, their sums, and the squares: each alone, and all of them."""
    logits_TE = (2 * torch.randn(70, 21)).requires_grad_()
    exact_TE = logits_TE.detach().double().requires_grad_()
    real_T = torch.arange(70) % 4 > 0 if masked else torch.ones(70, dtype=torch.bool)
    bias_E = torch.randn(21) if rule.sigmoid else None
    found = choose_scored(rule, logits_TE, bias_E=bias_E, real_T=real_T if masked else None, with_squares=True)
    got = found.weight_TK, found.score_TE.masked_fill(~real_T[:, None], 0), found.score_sums_E, found.log_sum_squares
    wanted = composed(rule, exact_TE, real_T, found.expert_TK)
    for own, value in zip(got, wanted, strict=True):
        assert far(own, value) < 1e-6
    of = [torch.randn(value.shape) for value in wanted]
    for values, exact in ((got, False), (wanted, True)):
        sum((values[i] * (of[i].double() if exact else of[i])).sum() for i in outputs).backward()
    assert exact_TE.grad.any()
    assert far(logits_TE.grad, exact_TE.grad) < 2e-6
    assert not logits_TE.grad[~real_T].any()


def test_a_weight_of_one_has_no_gradient() -> None:
    logits_TE = torch.randn(9, 5, requires_grad=True)
    choose_scored(ChoiceRule(1, renormalize=True), logits_TE).weight_TK.sum().backward()
    assert logits_TE.grad.abs().max() < 1e-6


def sorted_by_loop(expert_TK: list[list[int]], experts: int) -> tuple[list[int], list[int], list[int], list[int]]:
    per_token = len(expert_TK[0]) if expert_TK else 1
    flat = [(e, n) for n, e in enumerate(e for row in expert_TK for e in row) if e >= 0]
    order = [n for _, n in sorted(flat)]
    slot = [order.index(n) for _, n in flat]
    begins = [sum(e >= 0 for row in expert_TK[:t] for e in row) for t in range(len(expert_TK))]
    offsets = [sum(e < expert for e, _ in flat) for expert in range(experts + 1)]
    return order, [n // per_token for n in order], slot, [*begins, *offsets]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999), tokens=st.integers(0, 20), experts=st.sampled_from([1, 2, 7, 257]), k=st.integers(1, 4)
)
def test_sorting_is_stable_and_leaves_out_what_is_no_choice(seed: int, tokens: int, experts: int, k: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    expert_TK = torch.randint(-2 if seed % 2 else 0, experts, (tokens, k), generator=rng)
    order_S, token_S, slot_S, begins_T, offsets = sort_choices(expert_TK, experts)
    expected = sorted_by_loop(expert_TK.tolist(), experts)
    assert (order_S.tolist(), token_S.tolist(), slot_S.tolist(), [*begins_T.tolist(), *offsets]) == expected


def test_sorting_where_one_expert_takes_all() -> None:
    order_S, token_S, slot_S, _, offsets = sort_choices(torch.full((300, 1), 6), 8)
    assert order_S.tolist() == token_S.tolist() == slot_S.tolist() == list(range(300))
    assert offsets == (0,) * 7 + (300, 300)


def test_sorting_refuses_an_expert_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no expert of that number"):
        sort_choices(torch.tensor([[0, 3]]), 3)


def test_threads_change_no_bit() -> None:
    x_TD, weight_ED = torch.randn(6001, 96).bfloat16(), torch.randn(40, 96)
    seen = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            logits_TE = router_logits(x_TD, weight_ED).requires_grad_()
            found = choose_scored(ChoiceRule(4, renormalize=True), logits_TE, with_squares=True)
            (found.weight_TK.square().sum() + found.score_sums_E[3] + found.log_sum_squares).backward()
            grad_TE = logits_TE.grad
            of_products = router_grad_x(grad_TE, weight_ED, torch.bfloat16), router_grad_weight(grad_TE, x_TD)
            seen.append([*found, logits_TE, grad_TE, *of_products])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*seen, strict=True):
        assert torch.equal(one, two)
