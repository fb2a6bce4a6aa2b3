"""The whole MoE layer against a loop over tokens, its branches, and the traps that others fell into."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig
from moekit.kernels.backends import Backend
from moekit.moe import MoELayer, add_sums, routing_stats
from moekit.nn import FeedForward


def make_layer(
    backend: Backend, branch: str = "none", experts: int = 5, top_k: int = 2, *, bias: bool = False
) -> MoELayer:
    config = MoEConfig(
        experts=experts,
        expert_width=6,
        router=SoftmaxTopKConfig(top_k=top_k, renormalize=top_k > 1),
        branch=branch,  # type: ignore[arg-type]
        branch_width=0 if branch == "none" else 7,
        bias=bias,
    )
    layer = MoELayer(8, config, vocab_size=16, backend=backend).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def gated(x_D: Tensor, gate_up_GD: Tensor, down_DF: Tensor, *biases: Tensor) -> Tensor:
    gate_up_bias_G, down_bias_D = biases or (torch.zeros(len(gate_up_GD)), torch.zeros(len(down_DF)))
    gate_F, up_F = (gate_up_GD @ x_D + gate_up_bias_G).chunk(2)
    return down_DF @ (F.silu(gate_F) * up_F) + down_bias_D


def loop_layer(layer: MoELayer, x_TD: Tensor) -> Tensor:
    """Token by token, expert by expert."""
    rows = []
    for x_D in x_TD:
        p_E = (layer.router.weight @ x_D).softmax(-1)
        weights, ids = p_E.topk(layer.config.router.top_k)
        if layer.config.router.renormalize:
            weights = weights / weights.sum()
        y_D = torch.zeros_like(x_D)
        for weight, expert in zip(weights, ids.tolist(), strict=True):
            y_D = y_D + weight * gated(x_D, *(tensor[expert] for tensor in layer.experts.parameters()))
        if layer.branch is not None:
            linears = (layer.branch.gate_up, layer.branch.down)
            biases = [linear.bias for linear in linears if layer.config.bias]
            branch_D = gated(x_D, *(linear.weight for linear in linears), *biases)
            if layer.mixing is None:
                y_D = y_D + branch_D
            else:
                share = (layer.mixing.weight @ x_D + layer.mixing.bias).softmax(-1)
                y_D = share[0] * y_D + share[1] * branch_D
        rows.append(y_D)
    return torch.stack(rows)


@pytest.mark.parametrize("branch", ["none", "shared", "residual"])
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("tokens", [1, 11])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_equal_the_loop(backend: Backend, branch: str, tokens: int, *, bias: bool) -> None:
    layer = make_layer(backend, branch, bias=bias)
    x_TD = torch.randn(tokens, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randn(tokens, 8, dtype=torch.float64)
    inputs = [x_TD, *layer.parameters()]
    expected = loop_layer(layer, x_TD)
    expected_gradients = torch.autograd.grad((expected * target).sum(), inputs)
    got, _ = layer(x_TD[None])
    gradients = torch.autograd.grad((got[0] * target).sum(), inputs)
    torch.testing.assert_close(got[0], expected, rtol=1e-10, atol=1e-10)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient - wanted).norm() <= 1e-10 * wanted.norm() + 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_one_expert_equals_the_dense_layer_bit_for_bit(*, bias: bool) -> None:
    layer = make_layer("reference", experts=1, top_k=1, bias=bias).float()
    dense = FeedForward(8, DenseConfig(width=6, bias=bias))
    with torch.no_grad():
        dense.gate_up.weight.copy_(layer.experts.gate_up_EGD[0])
        dense.down.weight.copy_(layer.experts.down_EDF[0])
        if bias:
            dense.gate_up.bias.copy_(layer.experts.gate_up_bias_EG[0])
            dense.down.bias.copy_(layer.experts.down_bias_ED[0])
    x_BTD = torch.randn(2, 9, 8)
    assert torch.equal(layer(x_BTD)[0], dense(x_BTD.flatten(0, 1)).view_as(x_BTD))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_an_expert_that_nobody_chose_gets_no_gradient(backend: Backend) -> None:
    layer = make_layer(backend, bias=True)
    with torch.no_grad():
        layer.router.weight[3] = -1e3
        x_TD = torch.rand(10, 8, dtype=torch.float64) + 0.1
    y, routing = layer(x_TD[None])
    y.sum().backward()
    assert routing.counts_E[3] == 0
    for parameter in layer.experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[3].any()
        assert parameter.grad[routing.counts_E.argmax()].any()


def test_telemetry_tells_even_from_collapsed() -> None:
    layer = make_layer("reference")
    x_BTD = torch.rand(3, 40, 8, dtype=torch.float64) + 0.1
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0] += 5.0
        layer.router.weight[1] += 4.0
    _, routing = layer(x_BTD)
    stats = routing_stats(routing.sums)
    assert stats.dead_experts == 3
    assert stats.load_max_over_mean == pytest.approx(5 / 2)
    assert stats.load_entropy == pytest.approx(torch.tensor(2.0).log().item() / torch.tensor(5.0).log().item())
    assert stats.mean_top_score > 0.6


def test_telemetry_adds_up_over_batches() -> None:
    layer = make_layer("reference")
    x_BTD = torch.randn(4, 10, 8, dtype=torch.float64)
    whole = routing_stats(layer(x_BTD)[1].sums)
    parts = routing_stats(add_sums(layer(part[None])[1].sums for part in x_BTD))
    assert parts.dead_experts == whole.dead_experts
    assert parts.load_max_over_mean == pytest.approx(whole.load_max_over_mean)
    assert parts.load_entropy == pytest.approx(whole.load_entropy)
    assert parts.mean_top_score == pytest.approx(whole.mean_top_score)


def test_one_expert_is_even() -> None:
    layer = make_layer("reference", experts=1, top_k=1)
    assert routing_stats(layer(torch.randn(1, 4, 8, dtype=torch.float64))[1].sums).load_entropy == 1.0
