"""Whatever the model and the budget, what is placed stays within it; what cannot is refused with what would."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekit.config import AttentionConfig, DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.core.errors import UsageError
from moekit.kernels.native.block_streaming import BlockSpans
from moekit.kernels.native.direct_reading import FileSpan
from moekit.placement.model_memory import LayerBlock, LayerExperts, ModelMemory
from moekit.placement.solver import keep_blocks, share, solve
from moekit.placement.speed import Bandwidths, predict

GB = 10**9


def experts(count: int, top_k: int, size: int) -> LayerExperts:
    third = FileSpan(0, size // 3)
    return LayerExperts(spans=((third, third, third),) * count, top_k=top_k, bytes=size)


def blocks(*sizes: int) -> tuple[LayerBlock, ...]:
    spans = BlockSpans(layer=0, kind="attention", matrices=(FileSpan(0, 1),))
    return tuple(LayerBlock(spans=spans, bytes=size) for size in sizes)


def mixture(count: int, top_k: int, width: int) -> MoEConfig:
    return MoEConfig(experts=count, expert_width=width, router=SoftmaxTopKConfig(top_k=top_k))


@st.composite
def models(draw: st.DrawFn) -> ModelMemory:
    """Mixtures, dense models and hybrids, with experts of one or of several sizes."""
    kinds = draw(st.lists(st.sampled_from(["dense", "moe"]), min_size=1, max_size=6))
    layers, plan = [], []
    for kind in kinds:
        count = draw(st.integers(1, 64))
        top_k = draw(st.integers(1, count))
        layers.append(experts(count, top_k, draw(st.integers(4096, 50_000_000))) if kind == "moe" else None)
        width = draw(st.integers(8, 4096))
        plan.append(DenseConfig(width=width) if kind == "dense" else mixture(count, top_k, width))
    config = ModelConfig(
        vocab_size=draw(st.integers(8, 200_000)),
        width=64,
        context=draw(st.integers(2, 200_000)),
        attention=AttentionConfig(heads=4, kv_heads=draw(st.sampled_from([1, 2, 4])), head_width=16),
        layers=tuple(plan),
    )
    return ModelMemory(
        config=config,
        dense_bytes=draw(st.integers(0, 4 * GB)),
        layers=tuple(layers),
        blocks=blocks(*draw(st.lists(st.integers(4096, 500_000_000), max_size=12))),
        number_bytes=2,
        cache_number_bytes=2,
    )


@given(
    memory=models(),
    budget=st.integers(1, 20 * GB),
    resident=st.integers(0, GB),
    context=st.none() | st.integers(2, 200_000),
    sequences=st.integers(1, 16),
)
def test_nothing_goes_beyond_the_budget(
    memory: ModelMemory, budget: int, resident: int, context: int | None, sequences: int
) -> None:
    try:
        placed = solve(memory, budget=budget, resident=resident, context=context, sequences=sequences)
    except UsageError as refused:
        # What is named instead does fit.
        offers = str(refused)
        megabytes = re.search(r"--memory (\d+)MB", offers)
        assert megabytes
        solve(memory, budget=int(megabytes[1]) * 10**6, resident=resident, context=context, sequences=sequences)
        if shorter := re.search(r"--context (\d+)", offers):
            solve(memory, budget=budget, resident=resident, context=int(shorter[1]), sequences=sequences)
        return
    assert placed.used_bytes <= budget
    assert placed.context <= (context or memory.config.context)
    assert context is None or placed.context == context
    for places, layer in zip(placed.places, memory.layers, strict=True):
        assert 0 <= places <= (len(layer.spans) if layer else 0)
    whole = all(places == len(layer.spans) for places, layer in zip(placed.places, memory.layers, strict=True) if layer)
    assert whole or placed.passing > 0
    on_disk = [block.bytes for block, kept in zip(memory.blocks, placed.kept_blocks, strict=True) if not kept]
    assert placed.block_bytes + sum(on_disk) == memory.block_bytes
    assert (placed.ring_bytes > 0) == bool(on_disk)
    assert not on_disk or placed.ring_bytes >= 2 * max(on_disk)
    # No place is left that the smallest of what has none would fit into.
    left = on_disk + [
        layer.bytes
        for places, layer in zip(placed.places, memory.layers, strict=True)
        if layer and places < len(layer.spans)
    ]
    assert not left or budget - placed.used_bytes < min(left)
    # Experts have places only once all has one that every token uses, or none of that is small enough.
    assert not on_disk or placed.place_bytes <= min(on_disk)


def test_a_shorter_context_comes_before_blocks_on_disk() -> None:
    """Where nobody asked for one; who did has it."""
    attention = AttentionConfig(heads=4, kv_heads=4, head_width=128)
    config = ModelConfig(
        vocab_size=16, width=8, context=131_072, attention=attention, layers=(DenseConfig(width=8),) * 16
    )
    memory = ModelMemory(
        config=config, dense_bytes=0, layers=(None,) * 16, blocks=blocks(*[GB // 10] * 32), number_bytes=2,
        cache_number_bytes=2,
    )  # fmt: skip
    for budget in (34 * GB // 10, 38 * GB // 10, 46 * GB // 10):
        placed = solve(memory, budget=budget, resident=0)
        assert placed.ring_bytes == 0
        assert 256 <= placed.context < 131_072
        if placed.cache_bytes < budget // 8:
            # The next longer one would not have left room.
            assert solve(memory, budget=budget, resident=0, context=2 * placed.context).ring_bytes > 0
    assert solve(memory, budget=2 * GB, resident=0).ring_bytes > 0


def test_what_is_free_is_all_there_is() -> None:
    attention = AttentionConfig(heads=1, kv_heads=1, head_width=8)
    config = ModelConfig(vocab_size=16, width=8, context=8, attention=attention, layers=(DenseConfig(width=8),))
    memory = ModelMemory(config=config, dense_bytes=GB, layers=(None,), number_bytes=2, cache_number_bytes=2)
    with pytest.raises(UsageError, match="are the least; no more is free"):
        solve(memory, budget=GB // 2, resident=0, is_free=True)


def test_the_blocks_that_stay_are_spread_over_the_model() -> None:
    """Whatever their number, so that there is always something to compute while another is read."""
    for share_kept in (2, 3, 4):
        kept = keep_blocks([10] * 24, 240 // share_kept)
        assert sum(kept) == 24 // share_kept
        runs = "".join("x" if one else " " for one in kept).split("x")
        assert max(map(len, runs)) <= share_kept + 1


def test_equal_layers_share_alike() -> None:
    assert share([experts(8, 2, 100)] * 4, 1300) == (4, 3, 3, 3)


def test_a_layer_whose_experts_are_used_more_gets_more() -> None:
    """Bytes go where they save the most reading: half of a layer's uses for each place, or a sixteenth."""
    few, many = experts(4, 2, 100), experts(32, 2, 100)
    assert share([few, many], 400) == (4, 0)


def test_a_dense_layer_gets_none() -> None:
    assert share([None, experts(2, 1, 10)], 100) == (0, 2)


def test_the_first_place_that_does_not_fit_does_not_end_the_sharing() -> None:
    assert share([experts(2, 2, 1000), experts(8, 1, 10)], 60) == (0, 6)


def test_speed_of_blocks_on_disk_is_that_of_the_slower_of_the_two() -> None:
    attention = AttentionConfig(heads=1, kv_heads=1, head_width=8)
    config = ModelConfig(vocab_size=16, width=8, context=8, attention=attention, layers=(DenseConfig(width=8),))
    memory = ModelMemory(
        config=config, dense_bytes=0, layers=(None,), blocks=blocks(*[GB // 10] * 10), number_bytes=2,
        cache_number_bytes=2,
    )  # fmt: skip
    placed = solve(memory, budget=8 * GB // 10, resident=0)
    assert sum(placed.kept_blocks) == 5
    for disk, seconds in ((GB, 0.5), (100 * GB, 1 / 8)):
        speed = predict(memory, placed, Bandwidths(memory=10 * GB, disk=disk, disk_threads=4, disk_is_direct=True))
        assert speed.slow == speed.fast == pytest.approx(1 / seconds)


@pytest.mark.parametrize("kept", [0, 4, 8])
def test_speed_is_what_the_slower_of_memory_and_disk_give(kept: int) -> None:
    """By hand: a token reads 0.5 GB of dense weights and two experts of 0.1 GB in a layer."""
    attention = AttentionConfig(heads=1, kv_heads=1, head_width=8)
    config = ModelConfig(vocab_size=16, width=8, context=8, attention=attention, layers=(mixture(8, 2, 8),))
    memory = ModelMemory(
        config=config, dense_bytes=GB // 2, layers=(experts(8, 2, GB // 10),), number_bytes=2, cache_number_bytes=2
    )
    budget = 545_000_000 + kept * GB // 10 + 3 * GB // 10 * (kept < 8)
    placed = solve(memory, budget=budget, resident=0)
    assert placed.places == (kept,)
    speed = predict(memory, placed, Bandwidths(memory=10 * GB, disk=GB, disk_threads=4, disk_is_direct=True))
    of_memory, missing = 0.7 / 8, 1 - kept / 8
    assert speed.slow == pytest.approx(1 / (of_memory + 0.2 * missing))
    assert speed.fast == pytest.approx(1 / (of_memory + 0.2 * missing**3))
    assert speed.slow <= speed.expected <= speed.fast
