"""Pairs as batches: the end token, the padding, and what is real."""

import pytest
import torch

from moekit.data.objectives.pairs import pair_batch


def test_each_side_is_ended_and_padded() -> None:
    batch = pair_batch([[5, 6], [7]], [[8], [9, 10, 11]], pad=0, end=1)
    assert batch["source"].tolist() == [[5, 6, 1], [7, 1, 0]]
    assert batch["source_real"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["target"].tolist() == [[8, 1, 0, 0], [9, 10, 11, 1]]
    assert batch["target_real"].sum(1).tolist() == [2, 4]
    assert batch["source"].dtype == torch.int64
    assert batch["source_real"].dtype == torch.bool


def test_without_an_end_token() -> None:
    assert pair_batch([[5]], [[6, 7]], pad=0)["target"].tolist() == [[6, 7]]


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [([[1]], [], "no pairs"), ([], [], "no pairs"), ([[1], []], [[1], [2]], "a source is empty")],
)
def test_what_is_no_pair_is_refused(sources: list[list[int]], targets: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_batch(sources, targets, pad=0)
