"""Probabilities: as the equations have them, one at a time, and as KenLM has them."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.core.errors import MoekitError, UsageError
from moekit.models.ngram import NGram, Vocabulary, load_arpa
from moekit.models.ngram.smoothing import discounts
from moekit.models.ngram.trie import words_of

Sentences = Callable[..., list[list[str]]]

WORDS = ["a", "b", "c", "d"]
texts = st.lists(st.lists(st.sampled_from(WORDS[:3]), max_size=7), min_size=1, max_size=30)


LMPLZ = {
    "<unk>": (-1.1249387, 0),
    "<s>": (0, -0.30103),
    "</s>": (-0.48811665, 0),
    "a": (-0.75696194, -0.30103),
    "b": (-0.75696194, -0.30103),
    "c": (-0.90309, -0.30103),
    "d": (-0.90309, -0.30103),
    "<s> </s>": (-0.54136217, 0),
    "a </s>": (-0.48258418, 0),
    "c </s>": (-0.1788141, 0),
    "d </s>": (-0.1788141, 0),
    "<s> a": (-0.4717262, -0.30103),
    "b a": (-0.37588984, -0.30103),
    "<s> b": (-0.67264104, -0.30103),
    "a b": (-0.5948814, -0.30103),
    "a c": (-0.63984853, -0.30103),
    "b d": (-0.63984853, -0.30103),
    "b a </s>": (-0.38238817, 0.0),
    "a c </s>": (-0.08026834, 0.0),
    "b d </s>": (-0.08026834, 0.0),
    "<s> b a": (-0.14848687, 0.0),
    "a b a": (-0.33684894, 0.0),
    "<s> a b": (-0.20267476, 0.0),
    "b a c": (-0.43820316, 0.0),
    "a b d": (-0.43820316, 0.0),
}


def ids(model: NGram, tokens: list[str]) -> list[int]:
    return [model.vocabulary.ids.get(token, model.vocabulary.unknown) for token in tokens]


@settings(max_examples=120, deadline=None)
@given(sentences=texts, order=st.integers(1, 6), seed=st.integers(0, 9))
def test_equals_the_equations(reference: type, sentences: list[list[str]], order: int, seed: int) -> None:
    # d is never seen, and yet a word of the vocabulary with a probability of its own
    told: list[str] = []
    model = NGram.train(
        [np.array([WORDS.index(w) for w in s], dtype=int) for s in sentences], WORDS, order=order, say=told.append
    )
    expected = reference(sentences, order, WORDS)
    assert len(told) == len(expected.fallback)
    source = random.Random(seed)
    rows = [source.choices([*WORDS, "<unk>", "</s>"], k=9) for _ in range(6)]
    rows += [["<s>", *source.choice(sentences), *row][:9] for row in rows]
    got = model.log_prob(torch.tensor([ids(model, row) for row in rows]))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), [expected.log_probs(row) for row in rows], rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    sentences=texts,
    order=st.integers(1, 5),
    context=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    prune=st.integers(0, 2),
)
def test_probabilities_add_up_to_one(sentences: list[list[str]], order: int, context: list[int], prune: int) -> None:
    given_ids = [np.array([WORDS.index(w) for w in s], dtype=int) for s in sentences]
    model = NGram.train(given_ids, WORDS, order=order, prune=(0, prune)[:order])
    outcomes = [token for token in range(len(model.vocabulary)) if token != model.vocabulary.begin]
    rows = np.array([[*context, token] for token in outcomes])
    assert math.fsum(model.log_prob(rows)[:, -1].exp().tolist()) == pytest.approx(1, abs=1e-9)


def test_discounts_are_the_formulas(sentences: Sentences, reference: type) -> None:
    given_sentences = sentences("discounts", 400)
    expected = reference(given_sentences, 3, {w for s in given_sentences for w in s})
    assert expected.fallback == [1]  # of twelve words none is rare
    for length in (2, 3):
        counts = np.array([count for gram, count in expected.counts.items() if len(gram) == length])
        assert discounts(counts) == pytest.approx(expected.discounts[length - 1][1:], rel=1e-14)
    # n1 = 4, n2 = 1, n3 = 1: D2 is exactly 0, and would leave unseen words nothing
    assert discounts(np.array([1, 1, 1, 1, 2, 3])) is None
    assert discounts(np.array([1, 1, 1, 1, 2, 2, 3])) == pytest.approx((1 / 2, 1.25, 3))
    assert discounts(np.array([1, 2, 4])) is None


def test_small_texts_fall_back_and_say_so() -> None:
    told: list[str] = []
    NGram.train_words(["a b"], order=2, say=told.append)
    assert told == [
        f"The text is too small or too regular to estimate the discounts of {order}-grams: 0.5, 1.0, 1.5 are taken."
        for order in (1, 2)
    ]


def test_equals_lmplz() -> None:
    # LMPLZ is what lmplz of KenLM (4cb443e, -o 3 --discount_fallback) printed for this text
    model = NGram.train_words(["a b a c", "b a", "", "a b d"], order=3)
    found = {}
    for order, probs in enumerate(model.tables.log10_probs, start=1):
        names = ["<unk>", "<s>", "</s>", *model.vocabulary.words]
        columns = words_of(model.tables.levels, order, 0, len(probs))
        backoffs = model.tables.log10_backoffs[order - 1] if order < 3 else np.zeros(len(probs))
        for *gram, p, b in zip(*(c.tolist() for c in columns), probs.tolist(), backoffs.tolist(), strict=True):
            found[" ".join(names[word] for word in gram)] = (p, b)
    assert found.keys() == LMPLZ.keys()
    for gram, expected in LMPLZ.items():
        assert found[gram] == pytest.approx(expected, abs=1e-6), gram


@pytest.mark.parametrize(("order", "prune"), [(2, ()), (3, (0, 0, 1)), (5, ())])
def test_kenlm_gives_the_same_scores(sentences: Sentences, tmp_path: Path, order: int, prune: tuple[int, ...]) -> None:
    kenlm = pytest.importorskip("kenlm")
    train = [" ".join(sentence) for sentence in sentences("train", 300)]
    held_out = [" ".join(["née", *s] if number % 3 else s) for number, s in enumerate(sentences("held out", 60, 15))]
    model = NGram.train_words(train, order=order, prune=prune)
    model.save(tmp_path / "model.arpa")
    theirs = kenlm.Model(str(tmp_path / "model.arpa"))
    assert theirs.order == order
    unknown = 0
    for line, ours in zip(held_out, model.score_sentences(held_out), strict=True):
        scores = list(theirs.full_scores(line))
        unknown += sum(oov for _, _, oov in scores)
        np.testing.assert_allclose(ours, [score for score, _, _ in scores], atol=1e-5, rtol=0)
        assert ours.sum() == pytest.approx(theirs.score(line), abs=1e-4)
    assert unknown > 20


def test_kenlm_scores_bytes_alike(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    documents = [b"the cat sat on the mat", "là\0\n\t".encode(), b"the cat"]
    model = NGram.train_bytes(documents, order=4)
    model.save(tmp_path / "bytes.arpa")
    line = "the\tcät sat"
    named = " ".join(f"<0x{byte:02X}>" for byte in line.encode())
    theirs = [score for score, _, _ in kenlm.Model(str(tmp_path / "bytes.arpa")).full_scores(named)]
    np.testing.assert_allclose(next(model.score_sentences([line])), theirs, atol=1e-5, rtol=0)
    again = load_arpa(tmp_path / "bytes.arpa")
    assert again.vocabulary.is_bytes
    rows = torch.randint(0, 259, (5, 20))
    torch.testing.assert_close(again.log_prob(rows), model.log_prob(rows), rtol=1e-11, atol=1e-11)


def test_tokens_of_a_byte_model_are_bytes() -> None:
    model = NGram.train_bytes([b"abab", b"ab"], order=3)
    assert (model.vocabulary.unknown, model.vocabulary.begin, model.vocabulary.end) == (256, 257, 258)
    assert model.vocabulary.words[0x41] == "<0x41>"
    a_b, a_a = model.log_prob(np.array([[*b"ab"], [*b"aa"]])).exp().flatten().tolist()
    assert a_b > 0.5 > 0.2 > a_a
    # bytes never seen share alike
    unseen = model.log_prob(np.array([[ord("a"), byte] for byte in (0, 200, 256)]))
    assert unseen.unique().numel() == 1


def test_rows_and_blocks_do_not_touch(monkeypatch: pytest.MonkeyPatch, sentences: Sentences) -> None:
    model = NGram.train_words([" ".join(s) for s in sentences("blocks")], order=4)
    rows = torch.randint(0, len(model.vocabulary), (7, 31))
    whole = model.log_prob(rows)
    assert torch.equal(whole, torch.cat([model.log_prob(row[None]) for row in rows]))
    assert torch.equal(model.log_prob(rows.int().numpy()), whole)
    for size in (1, 5, 64):
        monkeypatch.setattr("moekit.models.ngram.ngram_model._BLOCK", size)
        assert torch.equal(model.log_prob(rows), whole)
    lines = [" ".join(s) for s in sentences("lines", 30)]
    scored = list(model.score_sentences(lines))
    for line, scores in zip(lines, scored, strict=True):
        tokens = [model.vocabulary.begin, *ids(model, line.split()), model.vocabulary.end]
        np.testing.assert_allclose(scores * math.log(10), model.log_prob(np.array([tokens]))[0], rtol=1e-14)


def test_pruning_leaves_out_what_is_rare(sentences: Sentences) -> None:
    train = [" ".join(s) for s in sentences("prune")]
    full, pruned = (NGram.train_words(train, order=3, prune=prune) for prune in ((), (0, 1, 2)))
    assert pruned.ngrams[0] == full.ngrams[0]
    assert 0 < pruned.ngrams[1] < full.ngrams[1]
    assert 0 < pruned.ngrams[2] < full.ngrams[2]
    for prune in ((1,), (0, 2, 1), (0, 0, 0, 0)):
        with pytest.raises(UsageError):
            NGram.train_words(train, order=3, prune=prune)


@pytest.mark.parametrize("tokens", [[[0, 5]], [[-1, 0]], [[0.0, 1.0]], [0, 1], [[]]])
def test_unusable_tokens(tokens: list[object]) -> None:
    model = NGram.train([np.array([0, 1])], 2, order=2)
    with pytest.raises(UsageError):
        model.log_prob(np.array(tokens))


def test_unusable_training() -> None:
    with pytest.raises(MoekitError, match="no text"):
        NGram.train_words([])
    with pytest.raises(UsageError, match="order"):
        NGram.train_words(["a"], order=17)
    with pytest.raises(UsageError, match="got 2"):
        NGram.train([np.array([0, 2])], Vocabulary(["a", "b"]))
    with pytest.raises(UsageError, match="memory_bytes"):
        NGram.train_words(["a"], memory_bytes=1000)
    with pytest.raises(MoekitError, match=r"Line 2 of the text holds <s>"):
        NGram.train_words(["a", "b <s>"])
    with pytest.raises(MoekitError, match="cannot be read"):
        NGram.train_words(Path("no such file"))


def test_words_are_parted_as_by_lmplz() -> None:
    model = NGram.train_words(["a\tb\0c  d\r", "e\vf\u00a0g", "<s>x"], order=1)
    assert list(model.vocabulary.words) == ["a", "b", "c", "d", "e\vf\u00a0g", "<s>x"]
    model = NGram.train_words([b"\xff caf\xc3\xa9"], order=1)
    assert list(model.vocabulary.words) == ["\udcff", "café"]
