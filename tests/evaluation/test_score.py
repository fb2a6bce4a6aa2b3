"""Bits per byte and perplexity against sums written out, for bytes, a tokenizer's file, words, and masked models."""

import math
from pathlib import Path

import pytest
import torch
from tests.conftest import DENSE, MOE, model_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moekit.config import EncoderConfig, LSTMConfig, XLNetConfig
from moekit.core.errors import MoekitError, UsageError
from moekit.data import Document
from moekit.data.model_tokenizer import tokenizer_of
from moekit.data.tokenizers import FileTokenizer
from moekit.evaluation import score_documents, scorer_of
from moekit.models import Decoder, LanguageModel, NGram, build, load

TEXT = "The cat sat on the mat; the dog, naïve as ever, did not. " * 2
DOCUMENTS = [Document("a", "one", TEXT.encode()), Document("b", "two", b"x = 1\n")]


def saved(model: LanguageModel, folder: Path) -> LanguageModel:
    model.save(folder)
    loaded = load(folder)
    assert isinstance(loaded, LanguageModel)
    return loaded


@pytest.mark.parametrize("context", [None, 1, 7])
def test_bytes(tmp_path: Path, context: int | None) -> None:
    model = saved(Decoder(model_config((DENSE, MOE))), tmp_path / "model")
    result = score_documents(scorer_of(model, context), DOCUMENTS)
    step = context or 24
    nats = 0.0
    for document in DOCUMENTS:
        ids = [0, *document.text]
        for begin in range(0, len(ids) - 1, step):
            with torch.no_grad():
                nats -= model.log_prob(torch.tensor([ids[begin : begin + step + 1]])).sum().item()
    size = sum(len(document.text) for document in DOCUMENTS)
    assert result.tokens == result.bytes == size
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats / size), rel=1e-5)
    assert result.by_domain.keys() == {"a", "b"}
    assert min(result.by_domain.values()) <= result.bits_per_byte <= max(result.by_domain.values())


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_tokenizers_file(tmp_path: Path) -> None:
    """Without a start token the first token is context, and its bytes are not counted."""
    Decoder(model_config((DENSE,)).model_copy(update={"vocab_size": 280})).save(tmp_path / "model")
    write_tokenizer(tmp_path / "model", 270)
    model = load(tmp_path / "model")
    assert isinstance(model, LanguageModel)
    tokenizer = FileTokenizer(tmp_path / "model")
    ids = tokenizer.encode(TEXT)
    assert len(ids) < len(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT
    result = score_documents(scorer_of(model), DOCUMENTS[:1])
    assert result.tokens == len(ids) - 1
    assert result.bytes == len(TEXT.encode()) - len(tokenizer.decode(ids[:1]).encode())
    model.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "model/tokenizer.json").read_bytes()


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    Decoder(model_config((DENSE,)).model_copy(update={"vocab_size": 300})).save(tmp_path / "model")
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        tokenizer_of(tmp_path / "model", 300)
    write_tokenizer(tmp_path / "model", 290)
    with pytest.raises(UsageError, match=r"has 28\d tokens, and the model beside it 280"):
        tokenizer_of(tmp_path / "model", 280)
    (tmp_path / "model/tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(MoekitError, match=r"tokenizer\.json is not a tokenizer"):
        tokenizer_of(tmp_path / "model", 300)


def test_words(tmp_path: Path) -> None:
    lines = ["the cat sat", "the dog sat", "a cat ran"] * 3
    NGram.train_words(lines, order=3).save(tmp_path / "words.arpa")
    model = load(tmp_path / "words.arpa")
    assert isinstance(model, NGram)
    text = "the cat ran\nthe bird sat"
    result = score_documents(scorer_of(model), [Document("a", "one", text.encode())])
    nats = -math.log(10) * sum(float(scores.sum()) for scores in model.score_sentences(text.split("\n")))
    assert result.tokens == 8  # six words and two ends
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-9)


def test_bytes_of_an_ngram_model() -> None:
    model = NGram.train_bytes([TEXT.encode()], order=4)
    result = score_documents(scorer_of(model), DOCUMENTS)
    assert 0 < result.bits_per_byte < 8
    assert result.tokens == result.bytes


@pytest.mark.parametrize(
    "config",
    [
        LSTMConfig(vocab_size=256, embedding_width=6, widths=(6,)),
        XLNetConfig(vocab_size=256, width=8, heads=2, layers=(DENSE,)),
    ],
)
def test_every_kind_scores_each_byte(config: LSTMConfig | XLNetConfig) -> None:
    result = score_documents(scorer_of(build(config).eval(), 32), DOCUMENTS)
    assert result.tokens == result.bytes == sum(len(document.text) for document in DOCUMENTS)
    assert result.bits_per_byte == pytest.approx(8, abs=1.5)  # knows nothing yet


def test_what_cannot_be_scored() -> None:
    model = build(model_config((DENSE,)))
    with pytest.raises(UsageError, match="context is 24"):
        scorer_of(model, 25)
    with pytest.raises(UsageError, match="no token to score"):
        score_documents(scorer_of(model), [])
    encoder = build(EncoderConfig(vocab_size=256, width=8, context=12, heads=2, layers=(DENSE,)))
    with pytest.raises(MoekitError, match="mask_token"):
        score_documents(scorer_of(encoder), DOCUMENTS)
