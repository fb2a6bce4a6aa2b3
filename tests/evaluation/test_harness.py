"""The adapter against scores worked out by hand, and inside the harness's own evaluation."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.conftest import DENSE, model_config

from moekit.core.errors import UsageError
from moekit.models import Decoder, build

pytest.importorskip("lm_eval")
from moekit.evaluation.harness import HarnessModel


@pytest.fixture
def adapter(tmp_path: Path) -> HarnessModel:
    Decoder(model_config((DENSE, DENSE))).save(tmp_path / "model")
    return HarnessModel.load(str(tmp_path / "model"))


def asked(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_log_likelihoods_are_the_models(adapter: HarnessModel) -> None:
    ((score, greedy),) = adapter.loglikelihood([asked("the cat", " sat")], disable_tqdm=True)
    tokens = torch.tensor([list(b"\0the cat sat")])
    assert score == pytest.approx(adapter.model.log_prob(tokens)[0, -4:].sum().item(), rel=1e-5)
    assert not greedy
    ((alone, _),) = adapter.loglikelihood([asked("", "sat")], disable_tqdm=True)
    assert alone == pytest.approx(adapter.model.log_prob(torch.tensor([list(b"\0sat")])).sum().item(), rel=1e-5)


def test_what_it_writes_is_what_it_finds_most_probable(adapter: HarnessModel) -> None:
    (text,) = adapter.generate_until([asked("ab", {"until": [], "max_gen_toks": 6})], disable_tqdm=True)
    ids = list(b"\0ab")
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(adapter.model(torch.tensor([ids]))[0, -1].argmax()))
    assert text == bytes(ids[3:]).decode("utf-8", errors="replace")
    if text.isascii():
        ((_, greedy),) = adapter.loglikelihood([asked("ab", text)], disable_tqdm=True)
        assert greedy


def test_it_stops_at_a_stop(adapter: HarnessModel) -> None:
    (text,) = adapter.generate_until([asked("ab", {"max_gen_toks": 8})], disable_tqdm=True)
    stop = text[3]
    (cut,) = adapter.generate_until([asked("ab", {"until": stop, "max_gen_toks": 8})], disable_tqdm=True)
    assert cut == text[: text.index(stop)]


@pytest.mark.parametrize("length", [1, 24, 25, 60])
def test_a_long_text_is_scored_once_a_token(adapter: HarnessModel, length: int) -> None:
    """The context is 24 tokens."""
    text = "".join(chr(97 + index % 7) for index in range(length))
    (total,) = adapter.loglikelihood_rolling([asked(text)], disable_tqdm=True)
    expected, ids = 0.0, [0, *text.encode()]
    for begin in range(0, length, 24):
        end = min(begin + 24, length)
        window = ids[max(0, end - 24) : end + 1]
        log_prob = adapter.model.log_prob(torch.tensor([window]))[0]
        expected += log_prob[-(end - begin) :].sum().item()
    assert total == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(total)


def test_what_is_not_causal_is_refused() -> None:
    from moekit.config import EncoderConfig
    from moekit.data.tokenizers import ByteTokenizer

    encoder = build(EncoderConfig(vocab_size=260, width=8, context=12, heads=2, layers=(DENSE,)))
    with pytest.raises(UsageError, match="causal"):
        HarnessModel(encoder, ByteTokenizer())
