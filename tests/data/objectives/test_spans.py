"""Span corruption: what is cut out can be put back, and the amounts are T5's."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.config import DenseConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.core.errors import UsageError
from moekit.data.objectives.spans import random_lengths, sizes, span_batch
from moekit.models.encoder_decoder import EncoderDecoder


def config(**changes: Any) -> EncoderDecoderConfig:
    layer = DenseConfig(width=8, activation="relu", gated=False)
    values = {"vocab_size": 400, "width": 8, "heads": 2, "head_width": 4, "end_token": 1}
    return EncoderDecoderConfig(encoder_layers=(layer,), decoder_layers=(layer,), **values | changes)


def put_back(source: list[int], target: list[int], first: int, lowest: int) -> list[int]:
    """The text: each sentinel of the source is replaced by what stands behind it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token > lowest:
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    assert list(spans) == [first - index for index in range(len(spans))]
    text = []
    for token in source:
        text += spans.pop(token) if token in spans else [token]
    assert not spans
    return text


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(2, 70),
    share=st.floats(0.01, 0.99),
    mean_span=st.floats(1, 9),
    seed=st.integers(0, 2**32),
    end=st.sampled_from([None, 1]),
)
def test_the_text_can_be_put_back(tokens: int, share: float, mean_span: float, seed: int, end: int | None) -> None:
    text = torch.randint(2, 256, (3, tokens), generator=torch.Generator().manual_seed(seed))
    batch = span_batch(text, config(end_token=end), seed=seed, step=7, sentinel=380, share=share, mean_span=mean_span)
    cut, spans = sizes(tokens, share=share, mean_span=mean_span)
    ends = 0 if end is None else 1
    assert batch["source"].shape == (3, tokens - cut + spans + ends)
    assert batch["target"].shape == (3, cut + spans + ends)
    assert batch["source_real"].all()
    assert batch["target_real"].shape == batch["target"].shape
    for row, source, target in zip(text.tolist(), batch["source"].tolist(), batch["target"].tolist(), strict=True):
        if end is not None:
            assert source.pop() == target.pop() == end
        assert put_back(source, target, 380, 300) == row


def test_the_amounts_are_those_of_the_paper() -> None:
    """512 tokens, 15 %, spans of 3: 77 tokens in 26 spans."""
    assert sizes(512, share=0.15, mean_span=3.0) == (77, 26)


def test_a_pure_function_of_seed_and_step() -> None:
    text = torch.arange(2, 122).view(2, 60)
    batches = [span_batch(text, config(), seed=seed, step=step)["source"] for seed, step in ((1, 2), (1, 2), (1, 3))]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_every_list_of_lengths_is_equally_likely() -> None:
    """5 tokens in 3 parts: 6 lists."""
    draws = np.random.default_rng(0).random((6000, 5))
    counts = Counter(map(tuple, random_lengths(5, 3, draws).tolist()))
    assert len(counts) == 6
    assert all(sum(lengths) == 5 and min(lengths) >= 1 for lengths in counts)
    assert all(850 < count < 1150 for count in counts.values())


def test_sentinels_that_the_text_holds_are_refused() -> None:
    text = torch.full((1, 20), 399)
    with pytest.raises(UsageError, match="reach into the text's ids"):
        span_batch(text, config(), seed=0, step=0)


def test_rows_that_are_too_short_are_refused() -> None:
    with pytest.raises(UsageError, match="longer rows"):
        span_batch(torch.zeros(2, 1, dtype=torch.int64), config(), seed=0, step=0)


def test_a_model_takes_the_batch() -> None:
    model = EncoderDecoder(config())
    batch = span_batch(torch.randint(2, 256, (2, 20)), config(), seed=0, step=0)
    loss, count = model.loss(batch)
    assert count == batch["target"].numel()
    assert loss.isfinite()
