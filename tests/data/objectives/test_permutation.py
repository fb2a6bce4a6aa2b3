"""XLNet's objective: which tokens are predicted, and in what order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.config import DenseConfig
from moekit.config.xlnet import XLNetConfig
from moekit.core.errors import UsageError
from moekit.data.objectives.permutation import permutation_batch
from moekit.models.xlnet import XLNet


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    step=st.integers(0, 1000),
    length=st.integers(2, 80),
    per_target=st.integers(1, 8),
    longest=st.integers(1, 5),
)
def test_one_in_k_is_a_target(seed: int, step: int, length: int, per_target: int, longest: int) -> None:
    tokens_BT = torch.randint(0, 256, (3, length))
    options = {"seed": seed, "step": step, "context_per_target": per_target, "longest_span": longest}
    wanted = length // per_target
    if not wanted:
        with pytest.raises(UsageError, match="too short"):
            permutation_batch(tokens_BT, **options)
        return
    batch = permutation_batch(tokens_BT, **options)
    assert torch.equal(batch["tokens"], tokens_BT)
    for row in range(3):
        targets, rank = batch["targets"][row].tolist(), batch["rank"][row].tolist()
        assert targets == sorted(set(targets))
        assert len(targets) == wanted
        assert 0 <= targets[0] <= targets[-1] < length
        # The targets are the last in the order, each at a place of its own; all else is context.
        assert sorted(rank[place] for place in targets) == list(range(1, wanted + 1))
        assert sum(value == 0 for value in rank) == length - wanted


def test_targets_come_in_spans_and_everywhere() -> None:
    batch = permutation_batch(torch.zeros(3000, 60, dtype=torch.int64), seed=1, step=1)
    is_target = batch["rank"] > 0
    assert is_target.sum(1).tolist() == [10] * 3000
    # Every place is a target about one time in six.
    torch.testing.assert_close(is_target.float().mean(0)[6:-6], torch.full((48,), 1 / 6), rtol=0, atol=0.04)
    # A target's neighbour is one, too, far more often: spans of 1 to 5 have (0 + 1 + ... + 4) / 15 such pairs a token.
    pairs = (is_target[:, 1:] & is_target[:, :-1]).sum() / is_target.sum()
    assert 0.5 < pairs < 0.75
    alone = permutation_batch(torch.zeros(3000, 60, dtype=torch.int64), seed=1, step=1, longest_span=1)["rank"] > 0
    assert (alone[:, 1:] & alone[:, :-1]).sum() / alone.sum() < 0.1
    # Orders are uniform: each of the targets comes first one time in ten.
    first = (batch["rank"].gather(1, batch["targets"]) == 1).float().mean(0)
    torch.testing.assert_close(first, torch.full((10,), 0.1), rtol=0, atol=0.03)


def test_it_is_a_function_of_seed_and_step() -> None:
    tokens_BT = torch.zeros(4, 60, dtype=torch.int64)
    batches = [permutation_batch(tokens_BT, seed=a, step=b) for a, b in ((1, 2), (1, 2), (2, 2), (1, 3))]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    for other in batches[2:]:
        assert not torch.equal(batches[0]["targets"], other["targets"])
        assert not torch.equal(batches[0]["rank"], other["rank"])


def test_the_model_takes_it() -> None:
    dense = DenseConfig(width=16, gated=False, bias=True)
    model = XLNet(XLNetConfig(vocab_size=256, width=16, heads=2, layers=(dense,)))
    loss, targets = model.loss(permutation_batch(torch.randint(0, 256, (4, 24)), seed=0, step=0))
    assert targets == 16
    assert (loss / targets).item() == pytest.approx(torch.tensor(256.0).log().item(), rel=0.05)
