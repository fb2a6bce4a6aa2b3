"""Attention as one compiled node against the same in fp64 from torch's operations, with its gradient."""

import pytest
import torch
from tests.kernels.instruction_sets import using_instruction_set
from torch import Tensor

from moekit.config import AttentionConfig, NormConfig, RotaryConfig
from moekit.kernels.native.module import native
from moekit.kernels.training.attention_passes import AttentionShape
from moekit.kernels.training.compiled import trains
from moekit.nn import Attention, Rope, RopeAngles, plain_attention
from moekit.nn.fused_attention import fused_attention

pytestmark = [
    pytest.mark.processor,
    pytest.mark.skipif(not trains(), reason="there are no compiled kernels"),
]

# sequences, tokens, heads, key-value heads, head width, rotated, window
SHAPES = [
    (2, 128, 2, 1, 64, True, None),
    (2, 1, 2, 1, 64, True, None),
    (1, 37, 4, 2, 8, True, 5),
    (2, 100, 3, 3, 20, True, 64),
    (1, 161, 4, 1, 40, False, None),
    (1, 161, 2, 1, 32, True, 33),
    (2, 64, 2, 2, 7, False, 1),
]


def angles_of(width: int, tokens: int) -> RopeAngles:
    return Rope(width, RotaryConfig(rope_base=100.0)).angles(0, tokens, torch.device("cpu"))


def composed(projected_BTN: Tensor, angles: RopeAngles | None, shape: AttentionShape) -> Tensor:
    batch, tokens, _ = projected_BTN.shape
    heads = projected_BTN.view(batch, tokens, shape.heads + 2 * shape.kv_heads, -1).transpose(1, 2)
    query, key, value = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
    if angles:
        query, key = angles.rotate(query), angles.rotate(key)
    return plain_attention(query, key, value, shape.scale, shape.window).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_equals_the_composition(case: tuple[int, int, int, int, int, bool, int | None], dtype: torch.dtype) -> None:
    batch, tokens, heads, kv_heads, width, rotated, window = case
    shape = AttentionShape(heads=heads, kv_heads=kv_heads, scale=1.5 * width**-0.5, window=window)
    angles = angles_of(width, tokens) if rotated else None
    projected = torch.randn(batch, tokens, (heads + 2 * kv_heads) * width).to(dtype).requires_grad_()
    towards = torch.randn(batch, tokens, heads * width).to(dtype)
    exact = projected.detach().double().requires_grad_()
    expected = composed(exact, angles, shape)
    (wanted,) = torch.autograd.grad(expected, exact, towards.double())
    limit = 2e-6 if dtype == torch.float32 else 8e-3
    for name in native().instruction_sets():
        with using_instruction_set(name):
            got = fused_attention(projected, angles, shape)
            (grad,) = torch.autograd.grad(got, projected, towards)
        assert (got.double() - expected).norm() <= limit * expected.norm(), name
        parts = [heads * width, kv_heads * width, kv_heads * width]
        for found, right in zip(grad.double().split(parts, -1), wanted.split(parts, -1), strict=True):
            # One token's scores have no gradient.
            assert (found - right).norm() <= limit * max(1.0, float(right.norm())), name


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    shape = AttentionShape(heads=4, kv_heads=2, scale=0.3)
    projected, towards = torch.randn(3, 70, 8 * 16).bfloat16().requires_grad_(), torch.randn(3, 70, 64).bfloat16()
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = fused_attention(projected, angles_of(16, 70), shape)
        found.append((y, *torch.autograd.grad(y, projected, towards)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_large_scores_do_not_overflow() -> None:
    shape = AttentionShape(heads=1, kv_heads=1, scale=1.0)
    projected = (100 * torch.randn(1, 40, 48)).requires_grad_()
    got = fused_attention(projected, None, shape)
    torch.testing.assert_close(got.double(), composed(projected.double(), None, shape), rtol=1e-4, atol=1e-2)
    got.sum().backward()
    assert projected.grad.isfinite().all()


@pytest.mark.parametrize("changes", [{}, {"query_key_norm": "head"}, {"qkv_bias": True}, {"window": 3}], ids=str)
def test_a_layer_computes_the_same_either_way(changes: dict[str, object]) -> None:
    """Attention's compiled path against what it computes in fp64, where there is none."""
    config = AttentionConfig(heads=4, kv_heads=2, head_width=8, **changes)
    attention = Attention(16, config, NormConfig())
    x = torch.randn(2, 9, 16)
    got = attention(x, angles_of(8, 9))
    expected = attention.double()(x.double(), angles_of(8, 9))
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_only_once() -> None:
    projected = torch.randn(1, 4, 24, requires_grad=True)
    y = fused_attention(projected, None, AttentionShape(heads=1, kv_heads=1, scale=1.0))
    (grad,) = torch.autograd.grad(y.sum(), projected, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|does not require grad"):
        torch.autograd.grad(grad.sum(), projected)
