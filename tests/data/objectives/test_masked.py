"""BERT's objective: what is masked, how often, and where sentences come from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.config import DenseConfig
from moekit.config.encoder import EncoderConfig
from moekit.core.errors import UsageError
from moekit.data.objectives.masked import mask, masked_batch
from moekit.models.encoder import NOT_PREDICTED, Encoder

PAD, START, SEPARATOR, MASK = 256, 257, 258, 259


def make_config(*, next_sentence: bool = True, **more: int | None) -> EncoderConfig:
    tokens = {"pad_token": PAD, "start_token": START, "separator_token": SEPARATOR, "mask_token": MASK} | more
    return EncoderConfig(
        vocab_size=260,
        width=16,
        context=64,
        heads=2,
        layers=(DenseConfig(width=16, gated=False, bias=True),),
        next_sentence=next_sentence,
        **tokens,  # type: ignore[arg-type]
    )


def some_text(batch: int = 6, length: int = 40) -> Tensor:
    """Each window's bytes tell which window it is, and increase."""
    return torch.arange(length) + 40 * torch.arange(batch)[:, None]


def unmasked(batch: dict[str, Tensor]) -> Tensor:
    return torch.where(batch["labels"] == NOT_PREDICTED, batch["tokens"], batch["labels"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 1000), length=st.integers(2, 40), rows=st.integers(2, 6))
def test_pairs_are_cut_and_joined(seed: int, step: int, length: int, rows: int) -> None:
    text_BN = some_text(rows, length)
    batch = masked_batch(text_BN, make_config(), seed=seed, step=step)
    tokens_BT, types_BT = unmasked(batch), batch["types"]
    assert tokens_BT.shape == types_BT.shape == batch["labels"].shape == (rows, length + 3)
    for row in range(rows):
        tokens = tokens_BT[row].tolist()
        cut = tokens.index(SEPARATOR) - 1
        assert 1 <= cut < length
        assert tokens[0] == START
        assert tokens[1 : cut + 1] == text_BN[row, :cut].tolist()
        second = tokens[cut + 2 : -1]
        sources = [other for other in range(rows) if second == text_BN[other, cut:].tolist()]
        assert len(sources) == 1
        assert int(batch["next_sentence"][row]) == int(sources[0] != row)
        assert tokens[-1] == SEPARATOR
        assert types_BT[row].tolist() == [0] * (cut + 2) + [1] * (length - cut + 1)


def test_without_pairs_the_text_stands_between_its_bounds() -> None:
    batch = masked_batch(some_text(), make_config(next_sentence=False), seed=1, step=2)
    assert "next_sentence" not in batch
    assert not batch["types"].any()
    tokens_BT = unmasked(batch)
    assert tokens_BT[:, 0].tolist() == [START] * 6
    assert tokens_BT[:, -1].tolist() == [SEPARATOR] * 6
    assert torch.equal(tokens_BT[:, 1:-1], some_text())


@pytest.mark.parametrize(("length", "expected"), [(3, 1), (40, 6), (200, 20)])
def test_how_many_are_predicted(length: int, expected: int) -> None:
    """15 % of all tokens with [CLS] and [SEP]s, at least one, at most twenty; never a special one."""
    text_BN = torch.randint(0, 256, (9, length))
    batch = masked_batch(text_BN, make_config(), seed=0, step=0)
    assert (batch["labels"] != NOT_PREDICTED).sum(1).tolist() == [expected] * 9
    assert batch["labels"].max() < 256
    assert (batch["tokens"] == START).sum() == 9
    assert (batch["tokens"] == SEPARATOR).sum() == 18


def test_padding_is_neither_counted_nor_predicted() -> None:
    tokens_BT = np.full((4, 40), PAD)
    tokens_BT[:, :14] = 65
    tokens, labels = mask(tokens_BT, make_config(), np.random.default_rng(0).random((3, 4, 40)))
    assert (labels[:, 14:] == NOT_PREDICTED).all()
    assert ((labels != NOT_PREDICTED).sum(1) == 2).all()
    assert (tokens[:, 14:] == PAD).all()


def test_four_fifths_masked_a_tenth_random_a_tenth_kept() -> None:
    # One byte alone, so that what is kept can be told from what is random.
    text_BN = torch.full((400, 200), 65)
    fates = torch.zeros(3)
    places = torch.zeros(203)
    firsts = randoms = 0
    for step in range(3):
        batch = masked_batch(text_BN, make_config(), seed=5, step=step)
        predicted_BT = batch["labels"] != NOT_PREDICTED
        seen = batch["tokens"][predicted_BT]
        assert seen.max() == MASK
        assert not ((seen > 255) & (seen != MASK)).any()
        fates += torch.tensor([(seen == MASK).sum(), ((seen != MASK) & (seen != 65)).sum(), (seen == 65).sum()])
        places += predicted_BT.sum(0)
        firsts, randoms = firsts + 400, randoms + int(batch["next_sentence"].sum())
        assert torch.equal(batch["tokens"][~predicted_BT], unmasked(batch)[~predicted_BT])
    share = fates / fates.sum()
    torch.testing.assert_close(share, torch.tensor([0.8, 0.1 * 255 / 256, 0.1 + 0.1 / 256]), rtol=0, atol=0.01)
    assert randoms / firsts == pytest.approx(0.5, abs=0.06)
    # Predicted anywhere in the text: no place more than half again as often as the mean.
    assert places[1:-1].max() < 1.6 * places[1:-1].mean()


def test_it_is_a_function_of_seed_and_step() -> None:
    batches = [masked_batch(some_text(), make_config(), seed=a, step=b) for a, b in ((1, 2), (1, 2), (2, 2), (1, 3))]
    for name, tensor in batches[0].items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, batches[1][name]), name
    for other in batches[2:]:
        assert not torch.equal(batches[0]["labels"], other["labels"])
    # What numpy may never change: the raw draws of this key.
    assert batches[0]["next_sentence"].tolist() == [1, 1, 1, 1, 0, 0]


def test_the_model_takes_it() -> None:
    config = make_config()
    model = Encoder(config)
    batch = masked_batch(some_text(), config, seed=0, step=0)
    loss, targets = model.loss(batch)
    assert targets == int((batch["labels"] != NOT_PREDICTED).sum())
    assert (loss / targets).item() == pytest.approx(np.log(260) + np.log(2), rel=0.05)


@pytest.mark.parametrize("missing", ["mask_token", "start_token", "separator_token"])
def test_special_tokens_are_needed(missing: str) -> None:
    with pytest.raises(UsageError, match=missing):
        masked_batch(some_text(), make_config(**{missing: None}), seed=0, step=0)


def test_pairs_need_two_windows() -> None:
    with pytest.raises(UsageError, match="two windows"):
        masked_batch(some_text(1), make_config(), seed=0, step=0)
