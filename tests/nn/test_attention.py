"""Rotary positions and attention against loops written from the papers."""

import math

import pytest
import torch

from moekit.config import AttentionConfig, NormConfig, RotaryConfig
from moekit.nn import Attention, KeyValueCache, Rope, Scores, plain_attention, visible


def loop_rope(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """One head's vector x_C rotated pair by pair."""
    width = x.numel()
    turned = x.clone()
    for i in range(width // 2):
        angle = position * base ** (-2 * i / width)
        a, b = x[i].item(), x[i + width // 2].item()
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + width // 2] = a * math.sin(angle) + b * math.cos(angle)
    return turned


@pytest.mark.parametrize("start", [0, 5])
def test_rope_rotates_pairs(start: int) -> None:
    rope = Rope(8, RotaryConfig(rope_base=100.0))
    x_BHTC = torch.randn(2, 3, 4, 8)
    rotated = rope.angles(start, 4, x_BHTC.device).rotate(x_BHTC)
    for batch in range(2):
        for head in range(3):
            for token in range(4):
                expected = loop_rope(x_BHTC[batch, head, token], start + token, 100.0)
                torch.testing.assert_close(rotated[batch, head, token], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_equals_the_loop(heads: int, kv_heads: int) -> None:
    config = AttentionConfig(heads=heads, kv_heads=kv_heads, head_width=8)
    attention = Attention(16, config, NormConfig()).double()
    angles = Rope(8, config).angles(0, 6, torch.device("cpu"))
    x_TD = torch.randn(6, 16, dtype=torch.float64)
    got = attention(x_TD[None], angles)[0]
    q, k, v = (x_TD @ attention.query_key_value.weight.T).view(6, -1, 8).split([heads, kv_heads, kv_heads], 1)
    rows = []
    for t in range(6):
        mixed = []
        for head in range(heads):
            shared = head * kv_heads // heads
            query = loop_rope(q[t, head], t, config.rope_base)
            scores = torch.stack(
                [query @ loop_rope(k[s, shared], s, config.rope_base) / math.sqrt(8) for s in range(t + 1)]
            )
            mixed.append((scores.softmax(0)[:, None] * v[: t + 1, shared]).sum(0))
        rows.append(torch.cat(mixed) @ attention.output.weight.T)
    # The angles are kept in fp32, so double precision does not go all the way.
    torch.testing.assert_close(got, torch.stack(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_plain_attention_equals_the_fused_one_with_its_gradients(heads: int, kv_heads: int, window: int | None) -> None:
    shapes = [(2, heads, 7, 8), (2, kv_heads, 7, 8), (2, kv_heads, 7, 8)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = Scores(scale=8**-0.5, window=window).mix(*inputs)
    got = plain_attention(*inputs, 8**-0.5, window)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * towards).sum(), inputs)
    for gradient, right in zip(torch.autograd.grad((got * towards).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-12)


def test_attention_in_bf16_is_within_rounding() -> None:
    """The path that training in bf16 takes, against fp64."""
    inputs = [torch.randn(2, 4, 9, 8, dtype=torch.float64) for _ in range(3)]
    half = [tensor.bfloat16().requires_grad_() for tensor in inputs]
    scores = Scores(scale=8**-0.5)
    got, expected = scores.mix(*half).double(), scores.mix(*inputs)
    assert (got - expected).norm() < 0.01 * expected.norm()


def test_a_full_cache_refuses() -> None:
    cache = KeyValueCache(1, 1, (4, 4), context=3, dtype=torch.float32)
    cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(ValueError, match="do not fit a context of 3"):
        cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("alibi_heads", [0, 6])
@pytest.mark.parametrize(("tokens", "positions"), [(7, 7), (2, 7), (1, 7)])
def test_shaped_scores_equal_the_loop(
    window: int | None, soft_cap: float | None, alibi_heads: int, tokens: int, positions: int
) -> None:
    if soft_cap and alibi_heads:
        return  # no model has both
    q, k, v = (torch.randn(1, n, t, 8, dtype=torch.float64) for n, t in ((6, tokens), (2, positions), (2, positions)))
    scores = Scores(scale=0.3, window=window, soft_cap=soft_cap, alibi_heads=alibi_heads)
    got = scores.mix(q, k, v)
    # Slopes of six heads: those of four, then the first two of eight's that lie between (arXiv 2108.12409).
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    for head in range(6):
        for t in range(tokens):
            here = positions - tokens + t
            seen = [p for p in range(positions) if p <= here and (window is None or here - p < window)]
            values = []
            for p in seen:
                score = (q[0, head, t] @ k[0, head // 3, p]).item()
                if alibi_heads:
                    score += slopes[head] * p
                score *= 0.3
                values.append(soft_cap * math.tanh(score / soft_cap) if soft_cap else score)
            share = torch.tensor(values, dtype=torch.float64).softmax(0)
            torch.testing.assert_close(got[0, head, t], share @ v[0, head // 3, seen], rtol=1e-6, atol=1e-7)


def test_a_window_hides_what_lies_before_it() -> None:
    seen = visible(3, 5, 2, torch.device("cpu"))
    assert seen.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
