"""The rungs, whom they are for, and the scale that is asked about."""

import pytest

from moekit.comparison.ladder import rungs
from moekit.comparison.ladder.rungs import LADDER_SIZES, choose_for, model_size, sizes_up_to, tokens_at
from moekit.comparison.ladder.target_scale import parse_scale
from moekit.comparison.spec.contestants import SIZES, Contestant
from moekit.config import BYTE_VOCAB_SIZE, AttentionConfig, DenseConfig, ModelConfig, decoder_layers
from moekit.core.errors import UsageError


@pytest.mark.parametrize("largest", ["xs", "s", "m", "l"])
def test_flops_grow_thirtyfold(largest: str) -> None:
    sizes = sizes_up_to(largest)
    assert len(sizes) == rungs.RUNGS
    tokens = rungs.fewest_tokens(sizes)
    small, large = (6 * model_size(size) * tokens_at(size, largest, tokens) for size in (sizes[0], largest))
    assert large / small > 30
    assert tokens_at(sizes[0], largest, tokens) >= rungs.FEWEST_STEPS * 2048
    assert 0.4 < rungs.largest_share(sizes) < 1


def test_rungs_differ_in_the_model_alone() -> None:
    assert len({(size.context, size.sequences) for size in LADDER_SIZES.values()}) == 1
    for name in SIZES:
        there, here = SIZES[name], LADDER_SIZES[name]
        assert (there.width, there.depth, there.hidden, there.heads) == (
            here.width,
            here.depth,
            here.hidden,
            here.heads,
        )
    sizes = [model_size(name) for name in LADDER_SIZES]
    assert sizes == sorted(sizes)


def test_default_contestants_have_the_flops_of_the_first() -> None:
    chosen = choose_for(None, sizes_up_to("s"))
    names = {tuple(one.name for one in found.required) for found in chosen.values()}
    assert len(names) == 1
    (names_,) = names
    assert {"dense", "moe", "moe-fine", "hybrid"} <= set(names_)
    assert not {"ngram", "dense-large", "upcycled"} & set(names_)


@pytest.mark.parametrize(("name", "why"), [("ngram", "no FLOPs"), ("upcycled", "two models")])
def test_what_makes_no_sense_on_a_ladder_is_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        choose_for(["dense", name], sizes_up_to("s"))


def test_one_shape_at_every_size_is_refused() -> None:
    attention = AttentionConfig(heads=1, kv_heads=1, head_width=32)
    layers = decoder_layers(attention, [DenseConfig(width=64)])
    fixed = Contestant(
        name="fixed", model=ModelConfig(vocab_size=BYTE_VOCAB_SIZE, width=32, context=128, layers=layers)
    )
    with pytest.raises(UsageError, match="one shape at every size"):
        choose_for(["dense", fixed], sizes_up_to("s"))


@pytest.mark.parametrize("sizes", [("xs",), ("s", "xs"), ("xs", "xs"), ("xs", "huge")])
def test_sizes_are_two_in_order(sizes: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        choose_for(["dense"], sizes)


def test_there_is_no_ladder_below_the_smallest() -> None:
    with pytest.raises(UsageError, match="too few"):
        sizes_up_to("w64")
    with pytest.raises(UsageError, match="no size 'xl'"):
        sizes_up_to("xl")


@pytest.mark.parametrize(
    ("text", "flops"),
    [("1e21", 1e21), ("3e20 FLOPs", 3e20), ("70b", 120 * 70e9**2), ("350M", 120 * 350e6**2), ("1.5T", 120 * 1.5e12**2)],
)
def test_scales_are_read(text: str, flops: float) -> None:
    found = parse_scale(text)
    assert found.flops == pytest.approx(flops)
    assert (found.rule is None) == ("e" in text)


def test_seventy_billion_is_what_chinchilla_took() -> None:
    """5.76e23 FLOPs (arXiv 2203.15556)."""
    assert parse_scale("70b").flops == pytest.approx(5.76e23, rel=0.05)


@pytest.mark.parametrize("text", ["", "70", "8x7b", "big", "-1e21", "nan", "1e99", "70bb"])
def test_other_scales_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_scale(text)
