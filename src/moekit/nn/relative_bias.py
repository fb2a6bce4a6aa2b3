"""T5's relative positions: a learned bias on attention's scores for each head and bucket of distances.

T queries, P positions that are seen, N buckets, H heads.
"""

import math

import torch
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """The bias[h, t, p] = weight[bucket(p - t), h] (arXiv 1910.10683, section 2.1).

    both_ways: whether positions after the query are seen; half of the buckets are theirs.
    """

    def __init__(self, heads: int, buckets: int, max_distance: int, *, both_ways: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        self.max_distance, self.both_ways = max_distance, both_ways

    def forward(self, tokens: int, positions: int) -> Tensor:
        """Compute bias_HTP of the last `tokens` of `positions`, for all of these."""
        place_P = torch.arange(positions, device=self.weight.device)
        distance_TP = place_P - place_P[positions - tokens :, None]
        bucket_TP = bucket(distance_TP, len(self.weight), self.max_distance, both_ways=self.both_ways)
        return self.weight[bucket_TP].permute(2, 0, 1)


def bucket(distance: Tensor, buckets: int, max_distance: int, *, both_ways: bool) -> Tensor:
    """Find the bucket of each distance p - t (int64), as mesh-tensorflow's `_relative_position_bucket` does.

    Going back: half of the buckets hold one distance each, the others grow by a constant factor up to max_distance, and
    the last holds all that are further. Distances ahead have as many buckets behind those where `both_ways`, else they
    fall into bucket 0.
    """
    first = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        first = (distance > 0) * buckets
        back = distance.abs()
    else:
        back = (-distance).clamp(min=0)
    single = buckets // 2
    # In fp32 and in this order, as the models were trained: a boundary falls where this rounding puts it.
    share = torch.log(back.clamp(min=1).float() / single) / math.log(max_distance / single)
    grown = (single + (share * (buckets - single)).long()).clamp(max=buckets - 1)
    return first + torch.where(back < single, back, grown)
