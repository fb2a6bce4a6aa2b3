"""Buckets of relative positions: against a loop with thresholds, and in blocks."""

import math

import pytest
import torch

from moekit.nn.relative_bias import RelativeBias, bucket


def slow_bucket(distance: int, buckets: int, furthest: int, both_ways: bool) -> int:
    """From the definition: bucket single + n begins at the distance single · (furthest / single)^(n / (rest))."""
    first = 0
    if both_ways:
        buckets //= 2
        first = buckets if distance > 0 else 0
        back = abs(distance)
    else:
        back = max(-distance, 0)
    single = buckets // 2
    if back < single:
        return first + back
    growing = buckets - single
    begins = [single * (furthest / single) ** (n / growing) for n in range(growing)]
    # An integer that should be the border itself may miss it by rounding: it belongs to the bucket that it opens.
    return first + single + sum(back >= border - 1e-6 for border in begins[1:])


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (5, 9), (32, 1000)])
@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_those_of_the_definition(buckets: int, furthest: int, both_ways: bool) -> None:
    distance = torch.arange(-300, 301)
    got = bucket(distance, buckets, furthest, both_ways=both_ways)
    expected = [slow_bucket(int(d), buckets, furthest, both_ways) for d in distance]
    # Rounding in fp32 may put an integer on a border into the bucket before it: T5's own models were trained so.
    differ = [int(d) for d, a, b in zip(distance, got.tolist(), expected, strict=True) if a != b]
    growing = (buckets // 2 if both_ways else buckets) - (buckets // 4 if both_ways else buckets // 2)
    single = buckets // 4 if both_ways else buckets // 2
    borders = [single * (furthest / single) ** (n / growing) for n in range(growing + 1)]
    for d in differ:
        assert any(math.isclose(abs(d), border, rel_tol=1e-6) for border in borders), d
    assert len(differ) <= 8


def test_the_bias_of_a_block_is_the_lower_part_of_the_whole() -> None:
    bias = RelativeBias(2, 8, 20, both_ways=False)
    torch.nn.init.normal_(bias.weight)
    whole, block = bias(9, 9), bias(3, 9)
    assert whole.shape == (2, 9, 9)
    assert torch.equal(whole[:, 6:], block)
    # Both heads, one distance: the same number on a whole diagonal.
    assert torch.equal(whole.diagonal(-1, 1, 2), bias.weight[1][:, None].expand(-1, 8))


def test_only_both_ways_tell_before_from_after() -> None:
    distance = torch.tensor([-2, 2])
    before, after = bucket(distance, 32, 128, both_ways=True).tolist()
    assert (before, after) == (2, 18)
    assert bucket(distance, 32, 128, both_ways=False).tolist() == [2, 0]
