"""Rotary positions and attention against loops written from the papers."""

import math

import pytest
import torch

from moekit.config import AttentionConfig
from moekit.nn import Attention, KeyValueCache, Rotary


def loop_rotary(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """One head's vector x_C turned pair by pair."""
    width = x.numel()
    turned = x.clone()
    for i in range(width // 2):
        angle = position * base ** (-2 * i / width)
        a, b = x[i].item(), x[i + width // 2].item()
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + width // 2] = a * math.sin(angle) + b * math.cos(angle)
    return turned


@pytest.mark.parametrize("start", [0, 5])
def test_rotary_turns_pairs(start: int) -> None:
    rotary = Rotary(8, 16, base=100.0)
    x_BHTC = torch.randn(2, 3, 4, 8)
    turned = rotary(x_BHTC, start)
    for batch in range(2):
        for head in range(3):
            for token in range(4):
                expected = loop_rotary(x_BHTC[batch, head, token], start + token, 100.0)
                torch.testing.assert_close(turned[batch, head, token], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_equals_the_loop(heads: int, kv_heads: int) -> None:
    config = AttentionConfig(heads=heads, kv_heads=kv_heads, head_width=8)
    attention = Attention(16, config).double()
    rotary = Rotary(8, 12, config.rope_base)
    x_TD = torch.randn(6, 16, dtype=torch.float64)
    got = attention(x_TD[None], rotary)[0]
    q = (x_TD @ attention.query.weight.T).view(6, heads, 8)
    k = (x_TD @ attention.key.weight.T).view(6, kv_heads, 8)
    v = (x_TD @ attention.value.weight.T).view(6, kv_heads, 8)
    rows = []
    for t in range(6):
        mixed = []
        for head in range(heads):
            shared = head * kv_heads // heads
            query = loop_rotary(q[t, head], t, config.rope_base)
            scores = torch.stack(
                [query @ loop_rotary(k[s, shared], s, config.rope_base) / math.sqrt(8) for s in range(t + 1)]
            )
            mixed.append((scores.softmax(0)[:, None] * v[: t + 1, shared]).sum(0))
        rows.append(torch.cat(mixed) @ attention.output.weight.T)
    # The angles are kept in fp32, so double precision does not go all the way.
    torch.testing.assert_close(got, torch.stack(rows), rtol=1e-5, atol=1e-6)


def test_a_full_cache_refuses() -> None:
    cache = KeyValueCache(1, AttentionConfig(heads=2, kv_heads=1, head_width=4), context=3, dtype=torch.float32)
    cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(ValueError, match="do not fit a context of 3"):
        cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
