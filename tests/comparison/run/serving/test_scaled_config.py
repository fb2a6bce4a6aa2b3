"""Plans grown in their proportions: what is equal at the comparison's size stays so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import model_config

from moekit.comparison.run.serving.random_weights import arena_bytes
from moekit.comparison.run.serving.scaled_config import Growth, growth_to, scaled
from moekit.comparison.spec.contestants import SIZES, default_contestants
from moekit.config import AttentionConfig, DenseConfig, LatentAttentionConfig, ModelConfig, MoEConfig
from moekit.core.errors import UsageError
from moekit.counting import count_parameters, inference_flops_per_token
from moekit.kernels.packed import BF16

CONTEXT = 512


def plans(size: str) -> dict[str, ModelConfig]:
    """The decoders of the default set."""
    found = {name: one.config(SIZES[size]) for name, one in default_contestants(SIZES[size]).items()}
    return {name: config for name, config in found.items() if isinstance(config, ModelConfig)}


def active(config: ModelConfig) -> int:
    """Active parameters of the layers."""
    counted = count_parameters(config)
    return counted.active - counted.by_part["embedding"] - counted.by_part["head"]


@given(size=st.sampled_from(sorted(SIZES)), width=st.integers(1, 12), depth=st.integers(1, 12))
def test_proportions_are_kept(size: str, width: int, depth: int) -> None:
    for config in plans(size).values():
        grown = scaled(config, Growth(width, depth), CONTEXT)
        assert grown.width == width * config.width
        assert len(grown.layers) == depth * len(config.layers)
        for index, layer in enumerate(grown.layers):
            before = config.layers[index % len(config.layers)]
            assert isinstance(layer.attention, AttentionConfig)
            assert isinstance(before.attention, AttentionConfig)
            assert layer.attention.heads * before.attention.kv_heads == (
                before.attention.heads * layer.attention.kv_heads
            )
            assert layer.attention.heads * layer.attention.head_width == grown.width
            match layer.feed_forward, before.feed_forward:
                case DenseConfig() as after, DenseConfig() as part:
                    assert after.width == width * part.width
                case MoEConfig() as after, MoEConfig() as part:
                    assert (after.expert_width, after.branch_width) == (
                        width * part.expert_width,
                        width * part.branch_width,
                    )
                    assert (after.experts, after.router, after.branch) == (part.experts, part.router, part.branch)
                case _:
                    raise AssertionError("a layer changed its kind")


@given(size=st.sampled_from(sorted(SIZES)), megabytes=st.floats(200, 4000))
def test_sizes_are_met_and_what_costs_the_same_still_does(size: str, megabytes: float) -> None:
    found = plans(size)
    growth = growth_to(found["dense"], megabytes * 1e6 / 2)
    grown = {name: scaled(config, growth, CONTEXT) for name, config in found.items()}
    # Width grows by whole numbers: by at most half of one from 1.5 up.
    assert 0.6 < 2 * active(grown["dense"]) / (megabytes * 1e6) < 1.6
    flops = {name: inference_flops_per_token(config, CONTEXT) for name, config in grown.items()}
    before = {name: inference_flops_per_token(config, config.context) for name, config in found.items()}
    same = [name for name in found if before[name] == pytest.approx(before["dense"], rel=0.02)]
    assert {"dense", "moe", "moe-fine", "hybrid"} <= set(same)
    for name in same:
        assert flops[name] == pytest.approx(flops["dense"], rel=0.02)
    total = {name: count_parameters(config).total for name, config in grown.items()}
    assert total["dense-large"] == pytest.approx(total["moe"], rel=0.02)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_a_gigabyte_is_met_within_a_fifth(size: str) -> None:
    dense = plans(size)["dense"]
    grown = scaled(dense, growth_to(dense, 0.5e9), CONTEXT)
    assert arena_bytes(grown, BF16) == pytest.approx(1e9, rel=0.2)


def test_other_attention_does_not_grow() -> None:
    latent = LatentAttentionConfig(heads=2, head_width=8, rotary_width=4, value_width=8, kv_rank=16)
    config = model_config()
    layers = tuple(layer.model_copy(update={"attention": latent}) for layer in config.layers)
    with pytest.raises(UsageError, match="latent"):
        scaled(config.model_copy(update={"layers": layers}), Growth(2, 2), CONTEXT)
