"""XLNet's objective: predict the last tokens of a random order of factorisation (arXiv 1906.08237, 2.2 and 2.3).

B sequences, T tokens, M predicted tokens. A pure function of its arguments.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moekit.core.errors import UsageError
from moekit.data.objectives.draws import uniform

_SPANS, _ORDER = 3, 4


def permutation_batch(
    tokens_BT: Tensor, *, seed: int, step: int, context_per_target: int = 6, longest_span: int = 5
) -> dict[str, Tensor]:
    """Make a training batch for XLNet from windows of text.

    M = T // `context_per_target` tokens (the paper's K) of each sequence are targets, in spans of 1 to `longest_span`:
    of each K · L consecutive tokens a random span of L.

    Args:
        tokens_BT: the windows.
        seed: the seed of the training.
        step: the training step.
        context_per_target: how many tokens there are for each that is predicted.
        longest_span: the most tokens of a span.

    Returns:
        tokens: as given. targets: int64 (B, M), their positions, ascending. rank: int64 (B, T), 0 for the tokens that
            are context only, 1 to M for the targets in the order of their factorisation, drawn anew for each sequence;
            each is predicted from the tokens of a lower rank (`moekit.models.xlnet.perm_mask`).

    Raises:
        UsageError: where the windows are too short for one target.
    """
    batch, length = tokens_BT.shape
    wanted = length // context_per_target
    if not wanted:
        raise UsageError(f"Windows of {length} tokens are too short: one in {context_per_target} is predicted.")
    draws = uniform((batch, 2 * wanted + 1), seed=seed, step=step, stream=_SPANS)
    targets_BM = np.stack([_spans(row, length, wanted, context_per_target, longest_span) for row in draws])
    order_BM = uniform((batch, wanted), seed=seed, step=step, stream=_ORDER).argsort(1, kind="stable")
    rank_BT = np.zeros((batch, length), dtype=np.int64)
    np.put_along_axis(rank_BT, targets_BM, order_BM + 1, axis=1)
    return {"tokens": tokens_BT, "rank": torch.from_numpy(rank_BT), "targets": torch.from_numpy(targets_BM)}


def _spans(draws: NDArray[np.float64], length: int, wanted: int, per_target: int, longest: int) -> NDArray[np.int64]:
    """Draw `wanted` positions in ascending order from two draws a target at most, and one for the first context."""
    # What does not divide by K is context at the ends.
    begin = int(draws[-1] * (length - wanted * per_target + 1))
    positions: list[int] = []
    for size_draw, place_draw in draws[:-1].reshape(-1, 2):
        size = min(1 + int(size_draw * longest), wanted - len(positions))
        first = begin + int(place_draw * ((per_target - 1) * size + 1))
        positions += range(first, first + size)
        begin += per_target * size
        if len(positions) == wanted:
            break
    return np.array(positions, dtype=np.int64)
