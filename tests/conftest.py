"""What several tests share: small models of every shape, and a small corpus."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.threads import one_torch_thread

from moekit.config import AttentionConfig, DenseConfig, FeedForwardConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig

DENSE = DenseConfig(width=48)
MOE = MoEConfig(experts=4, expert_width=24, router=SoftmaxTopKConfig(top_k=2))
SHARED = MoEConfig(
    experts=6,
    expert_width=16,
    router=SoftmaxTopKConfig(top_k=2, renormalize=False),
    branch="shared",
    branch_width=16,
)
RESIDUAL = MoEConfig(
    experts=3,
    expert_width=32,
    router=SoftmaxTopKConfig(top_k=1, renormalize=False),
    branch="residual",
    branch_width=16,
)

PLANS: dict[str, tuple[FeedForwardConfig, ...]] = {
    "dense": (DENSE, DENSE),
    "moe": (MOE, MOE),
    "shared": (DENSE, SHARED),
    "residual": (RESIDUAL, DENSE),
}


def model_config(
    layers: tuple[FeedForwardConfig, ...] = (DENSE, MOE), kv_heads: int = 2, *, tied: bool = False
) -> ModelConfig:
    return ModelConfig(
        vocab_size=256,
        width=32,
        context=24,
        attention=AttentionConfig(heads=4, kv_heads=kv_heads, head_width=8),
        layers=layers,
        tie_embeddings=tied,
        # Unit-scale activations: at the usual 0.02 the layers of so small a model would hardly matter.
        init_std=0.2,
    )


@pytest.fixture(params=sorted(PLANS))
def any_config(request: pytest.FixtureRequest) -> ModelConfig:
    """One model configuration per kind of layer plan."""
    return model_config(PLANS[request.param])


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    return model_config


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one of torch's threads during the test."""
    with one_torch_thread():
        yield
