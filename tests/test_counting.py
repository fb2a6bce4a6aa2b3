"""Counts from the configuration against the real module, exactly."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moekit.config import ModelConfig
from moekit.counting import (
    cached_values_per_token,
    count_parameters,
    inference_flops_per_token,
    training_flops_per_token,
)
from moekit.models import Decoder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_parameters_equal_the_modules(any_config: ModelConfig, kv_heads: int, tied: bool) -> None:
    layers = tuple(
        layer.model_copy(update={"attention": layer.attention.model_copy(update={"kv_heads": kv_heads})})
        for layer in any_config.layers
    )
    config = any_config.model_copy(update={"layers": layers, "tie_embeddings": tied})
    model = Decoder(config)
    counted = count_parameters(config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.total == sum(counted.by_part.values())
    parts = {"experts": 0, "router": 0, "norm": 0, "attention": 0}
    for name, parameter in model.named_parameters():
        for part in parts:
            if f"{part}." in name or f"{part}_" in name or name.startswith(f"{part}."):
                parts[part] += parameter.numel()
                break
    assert parts["experts"] == counted.by_part["experts"]
    assert parts["router"] == counted.by_part["router"]


@pytest.mark.parametrize("bias", [False, True])
def test_active_parameters_are_those_one_token_touches(any_config: ModelConfig, *, bias: bool) -> None:
    """One token through the model: experts whose weights get a gradient are the active ones, all others idle."""
    any_config = any_config.with_feed_forwards(
        [part.model_copy(update={"bias": bias}) for part in any_config.feed_forwards]
    )
    model = Decoder(any_config, backend="reference")
    model(torch.tensor([[7]])).sum().backward()
    touched = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            assert parameter.grad is not None
            used = (parameter.grad.flatten(1) != 0).any(1).sum().item()
            touched += int(used) * parameter[0].numel()
        else:
            touched += parameter.numel()
    assert count_parameters(any_config).active == touched


@pytest.fixture
def counted_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only products that torch's counter sees, and none that the formula leaves out."""
    # Padding that fills small experts up is not counted: without it, only equal loads are multiplied together.
    monkeypatch.setattr("moekit.kernels.torch.padding._SAVED", 0)
    # The counter sees torch's operations, not the compiled ones.
    monkeypatch.setattr("moekit.kernels.training.compiled.trains", lambda: False)
    # Plain products: flash attention on a CPU is not counted, and computes its scores anew in the gradient.
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.usefixtures("counted_products")
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_flops_equal_those_of_the_products_that_run(any_config: ModelConfig, backend: str) -> None:
    model = Decoder(any_config, backend=backend)  # type: ignore[arg-type]
    batch, context = 2, any_config.context
    tokens = torch.randint(0, 256, (batch, context))
    with FlopCounterMode(display=False) as forward:
        logits = model(tokens)
    assert forward.get_total_flops() == batch * context * inference_flops_per_token(any_config, context)
    with FlopCounterMode(display=False) as both:
        model(tokens).sum().backward()
    assert both.get_total_flops() == batch * context * training_flops_per_token(any_config, context)
    assert logits.shape == (batch, context, 256)


# Nothing dropped, so that every token costs what is counted.
SWITCH = {"kind": "switch", "capacity_factor": None}

VARIED: dict[str, dict[str, object]] = {
    "gpt": {
        "attention": {"heads": 4, "kv_heads": 4, "head_width": 8, "positions": "none", "qkv_bias": True},
        "layers": [{"kind": "dense", "width": 48, "activation": "gelu_tanh", "gated": False, "bias": True}] * 2,
        "norm": "layer",
        "learned_positions": True,
        "tie_embeddings": True,
    },
    "sandwich": {
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 8, "output_bias": True, "query_key_norm": "all"},
        "layers": [{"kind": "moe", "experts": 4, "expert_width": 24, "router": {"top_k": 2}, "activation": "gelu"}],
        "block": "sandwich",
    },
    "mixtures with biases": {
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 8},
        "layers": [
            {"kind": "moe", "experts": 4, "expert_width": 24, "router": {"top_k": 2}, "bias": True, **more}
            for more in ({}, {"gated": False}, {"branch": "residual", "branch_width": 16})
        ],
    },
    "one norm": {
        "attention": {"heads": 4, "kv_heads": 1, "head_width": 8, "query_key_norm": "head"},
        "layers": [{"kind": "dense", "width": 48, "bias": True}] * 3,
        "block": "parallel_shared",
    },
    "latent": {
        "attention": {
            "kind": "latent",
            "heads": 4,
            "head_width": 8,
            "rotary_width": 4,
            "value_width": 6,
            "kv_rank": 10,
            "query_rank": 12,
            "bias": True,
        },
        "layers": [
            {
                "kind": "moe",
                "experts": 4,
                "expert_width": 24,
                "router": {"kind": "sigmoid_bias", "top_k": 2},
                "branch": "gated_shared",
                "branch_width": 16,
            },
            {"kind": "moe", "experts": 3, "expert_width": 16, "router": SWITCH, "gated": False},
        ],
        "block": "parallel",
    },
    "latent, queries direct": {
        "attention": {
            "kind": "latent",
            "heads": 4,
            "head_width": 8,
            "rotary_width": 4,
            "value_width": 6,
            "kv_rank": 10,
        },
        "layers": [{"kind": "dense", "width": 48}],
    },
}


@pytest.mark.usefixtures("counted_products")
@pytest.mark.parametrize("kind", VARIED)
def test_every_variant_is_counted(kind: str) -> None:
    config = ModelConfig.model_validate({"vocab_size": 256, "width": 32, "context": 24, **VARIED[kind]})
    model = Decoder(config, backend="reference").eval()
    counted = count_parameters(config)
    assert counted.total == sum(counted.by_part.values()) == sum(tensor.numel() for tensor in model.parameters())
    tokens = torch.randint(0, 256, (2, 24))
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(tokens)
    assert forward.get_total_flops() == 2 * 24 * inference_flops_per_token(config, 24)
    held = sum(cache.key_BGPC.numel() + cache.value_BGPC.numel() for cache in model.new_caches(1))
    assert held == 24 * cached_values_per_token(config)


def test_published_totals() -> None:
    """Mixtral 8x7B: 46.7 B parameters, 12.9 B of them active (arXiv 2401.04088, section 2)."""
    mixtral = ModelConfig.model_validate(
        {
            "vocab_size": 32000,
            "width": 4096,
            "context": 32768,
            "attention": {"heads": 32, "kv_heads": 8, "head_width": 128, "rope_base": 1e6},
            "layers": [{"kind": "moe", "experts": 8, "expert_width": 14336, "router": {"top_k": 2}}] * 32,
        }
    )
    counted = count_parameters(mixtral)
    assert round(counted.total / 1e9, 1) == 46.7
    assert round(counted.active / 1e9, 1) == 12.9
