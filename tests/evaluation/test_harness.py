"""The adapter against scores worked out by hand, and inside the harness's own evaluation."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.conftest import DENSE, model_config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

import moekit
from moekit.config import GShardConfig, MoEConfig, RouterConfig, SoftmaxTopKConfig, SwitchConfig
from moekit.core.errors import UsageError
from moekit.data.tokenizers import ByteTokenizer
from moekit.inference.torch_runner import TorchRunner
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

    encoder = build(EncoderConfig(vocab_size=260, width=8, context=12, heads=2, layers=(DENSE,)))
    with pytest.raises(UsageError, match="causal"):
        HarnessModel(encoder, ByteTokenizer())


@pytest.mark.parametrize("length", [24, 25, 60, 121])
def test_an_answer_that_is_longer_than_the_context_is_scored_whole(adapter: HarnessModel, length: int) -> None:
    """The context is 24 tokens; beyond it each piece of 12 is given the 24 tokens before its last."""
    answer = "".join(chr(97 + index * index % 19) for index in range(length))
    ((score, greedy),) = adapter.loglikelihood([asked("it is", answer)], disable_tqdm=True)
    ids, start = [0, *b"it is", *answer.encode()], 6
    size = length if length <= 24 else 12
    expected = 0.0
    for begin in range(start, len(ids), size):
        end = min(begin + size, len(ids))
        log_prob = adapter.model.log_prob(torch.tensor([ids[max(0, end - 25) : end]]))[0]
        expected += log_prob[begin - end :].sum().item()
    assert score == pytest.approx(expected, rel=1e-5)
    assert not greedy


def with_tokenizer(folder: Path, template: str | None) -> HarnessModel:
    """A model with a tokenizer of bytes, <s> and </s>, whose post-processor puts around a text what `template` says."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("</s>", "<s>")])
    if template:
        named = [("</s>", 256), ("<s>", 257)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    config = model_config((DENSE,)).model_copy(update={"vocab_size": 258})
    Decoder(config).save(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 257, "eos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(settings))
    return HarnessModel.load(str(folder))


@pytest.mark.parametrize(
    ("template", "context", "expected"),
    [
        ("<s> $A", "ab", [257]),
        ("<s> $A </s>", "ab", [257]),
        ("<s> $A", "<s>ab", [257]),
        ("$A", "ab", []),
        (None, "ab", []),
        ("<s> $A", "", [257]),
        (None, "", [257]),
    ],
)
def test_the_start_token_is_the_tokenizers(
    template: str | None, context: str, expected: list[int], tmp_path: Path
) -> None:
    """As the harness's own models put it: where the tokenizer does, once, and before an answer to nothing."""
    adapter = with_tokenizer(tmp_path / "model", template)
    seen: list[list[int]] = []
    adapter.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten().tolist()))
    adapter.loglikelihood([asked(context, "cd")], disable_tqdm=True)
    adapter.generate_until([asked(context, {"max_gen_toks": 1})], disable_tqdm=True)
    adapter.loglikelihood_rolling([asked("abcd")], disable_tqdm=True)
    text = adapter.tokenizer.encode("ab") if context else []
    first = adapter.tokenizer.encode("cd")[:1]
    assert seen[0] == [*expected, *text, *first]
    assert seen[1] == [*expected, *text]
    assert seen[2][:2] == [257, *adapter.tokenizer.encode("a")]


@pytest.mark.parametrize("router", [SwitchConfig(), GShardConfig(), SoftmaxTopKConfig(top_k=2, capacity_factor=0.5)])
def test_a_score_is_that_of_the_model_in_use(router: RouterConfig, tmp_path: Path) -> None:
    """Token by token nothing is dropped for want of capacity, and so in scores: whatever windows stand together."""
    moe = MoEConfig(experts=8, expert_width=32, router=router)
    model = Decoder(model_config((moe, moe))).eval()
    model.save(tmp_path / "model")
    text = "".join(chr(97 + index * index % 23) for index in range(96))
    (tmp_path / "text.txt").write_text(text)
    ids = torch.tensor([0, *text.encode()])
    expected = 0.0
    with torch.no_grad():
        for begin in range(0, 96, 24):
            caches = model.new_caches(1)
            for place in range(begin, begin + 24):
                logits = model(ids[None, place : place + 1], caches=caches)[0, -1].double()
                expected += float(logits.log_softmax(-1)[ids[place + 1]])
    evaluated = moekit.evaluate(tmp_path / "model", [tmp_path / "text.txt"])
    assert evaluated.bits_per_byte == pytest.approx(-expected / math.log(2) / 96, rel=1e-5)
    (rolled,) = HarnessModel(model, ByteTokenizer()).loglikelihood_rolling([asked(text)], disable_tqdm=True)
    assert rolled == pytest.approx(expected, rel=1e-5)
    assert [layer.router.capacity_factor for layer in model.moe_layers] == [router.capacity_factor] * 2
    runner = TorchRunner(model)
    logits_V = torch.from_numpy(runner.prefill(runner.new_cache(), ids[:24].tolist()))
    with torch.no_grad():
        caches = model.new_caches(1)
        for place in range(24):
            one = model(ids[None, place : place + 1], caches=caches)[0, -1]
    assert torch.allclose(logits_V, one, atol=1e-4)
