"""Batches of training text and windows of held-out text."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.core.errors import UsageError
from moekit.data import Corpus, DomainText, held_out_parts, held_out_windows, is_scored, large_enough, training_batch


def corpus_of(*sizes: tuple[int, int]) -> Corpus:
    """Domains of so many bytes of training and held-out text; each byte's value follows from its place."""
    return Corpus(
        "c",
        "",
        tuple(
            DomainText(str(index), *(((np.arange(size) + 50 * index) % 251).astype(np.uint8) for size in pair), 1, 1)
            for index, pair in enumerate(sizes)
        ),
    )


def test_a_batch_is_a_function_of_its_arguments(small: Corpus) -> None:
    def batch(step: int, seed: int) -> torch.Tensor:
        return training_batch(small, step=step, sequences=8, context=32, seed=seed)

    later_first = [batch(step, 0) for step in (5, 4, 3)]
    torch.manual_seed(1)
    np.random.seed(1)
    assert all(torch.equal(batch(step, 0), seen) for step, seen in zip((5, 4, 3), later_first, strict=True))
    distinct = [batch(step, seed) for step in range(10) for seed in range(3)]
    assert len({tuple(batch.flatten().tolist()) for batch in distinct}) == 30
    assert distinct[0].dtype == torch.int64
    assert distinct[0].shape == (8, 33)


def test_the_draws_never_change() -> None:
    batch = training_batch(corpus_of((1000, 10), (1000, 10)), step=3, sequences=4, context=2, seed=7)
    assert batch.tolist() == [[237, 238, 239], [5, 6, 7], [59, 60, 61], [28, 29, 30]]


def test_a_longer_batch_starts_with_the_shorter_one(small: Corpus) -> None:
    short, long = (training_batch(small, step=1, sequences=n, context=16, seed=0) for n in (4, 9))
    assert torch.equal(short, long[:4])


def test_domains_and_places_are_drawn_uniformly() -> None:
    # sizes far apart, and a text of exactly one window
    sizes = [(100_000, 10), (1000, 10), (11, 10)]
    corpus = Corpus(
        "c",
        "",
        tuple(
            DomainText(str(index), np.full(train, index + 1, np.uint8), np.ones(held, np.uint8), 1, 1)
            for index, (train, held) in enumerate(sizes)
        ),
    )
    seen = Counter(
        int(row[0]) for step in range(60) for row in training_batch(corpus, step=step, sequences=50, context=10, seed=0)
    )
    # 3000 draws: 1000 each, standard deviation 26
    assert all(abs(seen[domain] - 1000) < 5 * 26 for domain in (1, 2, 3)), seen

    counting = corpus_of((111, 10))
    starts = Counter(
        int(row[0])
        for step in range(60)
        for row in training_batch(counting, step=step, sequences=50, context=10, seed=0)
    )
    # 101 places, 30 draws each; the first and the last are among them
    assert set(starts) == set(range(101))
    assert max(starts.values()) < 30 + 6 * 30**0.5


@settings(max_examples=50, deadline=None)
@given(context=st.integers(1, 64), extra=st.integers(0, 200), step=st.integers(0, 2**40), seed=st.integers(0, 2**63))
def test_training_windows_are_text_of_one_domain(context: int, extra: int, step: int, seed: int) -> None:
    corpus = corpus_of((context + 1 + extra, 10), (context + 1, 10))
    for row in training_batch(corpus, step=step, sequences=5, context=context, seed=seed).tolist():
        assert any(bytes(row) in domain.train.tobytes() for domain in corpus.domains)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(2, 5000), context=st.integers(1, 300), tokens=st.integers(1, 4000))
def test_held_out_windows(size: int, context: int, tokens: int) -> None:
    if size <= context:
        size += context
    text = np.arange(size)
    corpus = Corpus("c", "", (DomainText("d", text, text, 1, 1),))  # places instead of bytes
    windows = held_out_windows(corpus, context=context, tokens_per_domain=tokens)["d"]
    assert windows.shape == (min(max(1, tokens // context), (size - 1) // context), context + 1)
    assert windows.dtype == torch.int64
    assert torch.equal(windows, windows[:, :1] + torch.arange(context + 1))
    targets = windows[:, 1:].flatten()
    assert len(set(targets.tolist())) == targets.numel()
    assert int(windows[0, 0]) == 0
    if len(windows) > 1:
        assert int(windows[-1, -1]) == size - 1
        gaps = windows[1:, 0] - windows[:-1, 0]
        assert int(gaps.max() - gaps.min()) <= 1


def test_separators_are_not_scored() -> None:
    assert is_scored(torch.tensor([[0, 1, 255, 0]])).tolist() == [[False, True, True, False]]


def test_domains_that_are_too_small_are_left_out_and_told() -> None:
    large_enough(corpus_of((65, 65), (65, 65)), context=64, sequences=2)
    told: list[str] = []
    kept = large_enough(corpus_of((65, 65), (64, 65), (65, 3)), context=64, sequences=1, say=told.append)
    assert [domain.name for domain in kept.domains] == ["0"]
    assert kept.sha256 == Corpus.of("c", kept.domains).sha256
    assert [(one.domain, one.bytes) for one in kept.left_out] == [("1", 129), ("2", 68)]
    assert len(told) == 1
    assert "2 texts, 197 B, of a domain with less than 65 bytes on a side" in told[0]


def test_when_all_are_too_small_all_are_named() -> None:
    with pytest.raises(UsageError, match=r"'0' has 65 bytes .* and 64 held out; '1' has 64 bytes .* and 65 held out:"):
        large_enough(corpus_of((65, 64), (64, 65)), context=64, sequences=1)
    with pytest.raises(UsageError, match=r"130 bytes of training text, and one batch of 3 sequences needs 195: give"):
        large_enough(corpus_of((65, 65), (65, 65)), context=64, sequences=3)


def test_held_out_parts_are_documents_and_stretches_of_long_ones() -> None:
    """Every target has the part of its document; of the one that is half of the text there are several."""
    short = [bytes([0]) + bytes([index + 1]) * 99 for index in range(30)]
    text = np.frombuffer(b"".join([*short[:15], bytes([0]) + bytes([200]) * 2999, *short[15:]]), dtype=np.uint8)
    corpus = Corpus.of("c", [DomainText("d", text, text, 31, 31)])
    windows = held_out_windows(corpus, context=10, tokens_per_domain=10**6)["d"]
    parts = held_out_parts(corpus, context=10, tokens_per_domain=10**6)["d"]
    assert parts.shape == windows[:, 1:].shape
    byte, part = windows[:, 1:].flatten(), parts.flatten()
    assert sorted(set(part.tolist())) == list(range(int(part.max()) + 1))
    for value in set(byte.tolist()) - {0}:
        found = set(part[byte == value].tolist())
        assert len(found) == (10 if value == 200 else 1)
    assert all(len(set(byte[(part == each) & (byte != 0)].tolist())) <= 1 for each in range(int(part.max()) + 1))
    assert int(torch.bincount(part).max()) <= part.numel() / 20 + 1
