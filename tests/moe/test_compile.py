"""torch.compile gives what eager execution gives: a graph up to the experts' kernel, which breaks it on purpose."""

import pytest
import torch
from tests.moe.routers import samples
from torch import Tensor

from moekit.config import MoEConfig
from moekit.moe import MoELayer, RouterInput, Routing

# Tracing warns about attributes that it asks of tensors itself, and about what it cannot trace.
pytestmark = pytest.mark.filterwarnings("ignore")


def outcome(layer: MoELayer, run: object, x_BTD: Tensor) -> tuple[Routing, list[Tensor]]:
    """The Routing; the output, the gradients of the task and of the routers' losses."""
    torch.manual_seed(2)
    x_BTD = x_BTD.clone().requires_grad_()
    token_T = torch.arange(18) * 5 % samples.VOCAB
    given = RouterInput(token_T=token_T, real_T=torch.arange(18) % 7 > 0)
    y_BTD, routing = run(x_BTD, given)  # type: ignore[operator]
    loss = y_BTD.square().sum() + sum(layer.router.losses(routing.sums).values())
    gradients = torch.autograd.grad(loss, [x_BTD, *layer.parameters()], allow_unused=True)
    return routing, [y_BTD, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax_top_k", "expert_choice"])
def test_compiled_equals_eager(kind: str) -> None:
    torch.compiler.reset()
    config = MoEConfig(experts=4, expert_width=6, router=samples.config(kind), branch="shared", branch_width=6)
    layer = MoELayer(samples.WIDTH, config, samples.VOCAB)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD = torch.randn(2, 9, samples.WIDTH)
    routing, wanted = outcome(layer, layer, x_BTD)
    compiled, got = outcome(layer, torch.compile(layer, backend="aot_eager"), x_BTD)
    assert [pair[:2] for pair in samples.listed(compiled)] == [pair[:2] for pair in samples.listed(routing)]
    assert len(got) == len(wanted) > 3
    for own, value in zip(got, wanted, strict=True):
        assert (own - value).norm() <= 1e-5 * value.norm()
    for name, value in routing.sums.items():
        torch.testing.assert_close(compiled.sums[name], value, rtol=1e-5, atol=1e-5)
