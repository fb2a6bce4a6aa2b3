"""What is generated against transformers, and against what the same runner gives when asked otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import MOE, model_config
from tests.inference.runner_logits import decode, prefill

from moekit.config import ExpertChoiceConfig, MoEConfig
from moekit.core.errors import UsageError
from moekit.data.tokenizers import ByteTokenizer
from moekit.inference import Completion, GenerationOptions, LoadedModel, SamplingOptions, complete
from moekit.inference import load_runner as load
from moekit.inference.generation import PrefixCache
from moekit.inference.prompt_tokens import prompt_ids
from moekit.inference.runner import Cache, OnTokens
from moekit.inference.torch_runner import TorchRunner
from moekit.kernels.packed import Numbers
from moekit.models import Decoder
from moekit.models import load as load_model

PROMPT = "The quick brown 敏捷"
DRAWN = SamplingOptions(temperature=1.2, top_p=0.95, seed=5)


class Scripted:
    """A runner that says what it is told, whatever the prompt; its caches only count."""

    vocab_size = 256

    def __init__(self, said: bytes, context: int = 500) -> None:
        self.said, self.context = said, context
        self.prefilled: list[int] = []
        self.fail_after: int | None = None

    class Counting:
        def __init__(self) -> None:
            self.length = 0

        def truncate(self, length: int) -> None:
            self.length = length

    def new_cache(self) -> "Scripted.Counting":
        return Scripted.Counting()

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        assert isinstance(cache, Scripted.Counting)
        self.prefilled.append(len(tokens_T))
        cache.length += len(tokens_T)
        self.start = cache.length
        if on_tokens:
            on_tokens(len(tokens_T))
        return self._logits(cache)

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        assert len(caches) == len(tokens_B)
        for cache in caches:
            assert isinstance(cache, Scripted.Counting)
            cache.length += 1
            if self.fail_after is not None and cache.length - self.start > self.fail_after:
                raise KeyboardInterrupt
        return np.stack([self._logits(cache) for cache in caches])  # type: ignore[arg-type]

    def _logits(self, cache: "Scripted.Counting") -> Numbers:
        return np.eye(256, dtype=np.float32)[self.said[cache.length - self.start]]


def say(said: str, context: int = 500, **options: Any) -> tuple[Completion, list[str]]:
    pieces: list[str] = []
    (completion,) = complete(
        Scripted(said.encode() + b"\0" * 50, context),
        ByteTokenizer(),
        ["p"],
        GenerationOptions(end_tokens=frozenset({0}), **options),
        lambda _, piece: pieces.append(piece),
    )
    assert "".join(pieces) == completion.text
    return completion, pieces


def test_greedy_text_is_that_of_transformers(both: tuple[Any, Any, Path]) -> None:
    model, tokenizer, folder = both
    ours = load(folder)
    prompts = [PROMPT, "Zwölf 😀 dogs"]
    completions = complete(ours.runner, ours.tokenizer, prompts, GenerationOptions(max_tokens=24))
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert ids[0].tolist() == prompt_ids(prompt, ours.tokenizer)
        written = model.generate(ids, max_new_tokens=24, do_sample=False)[0]
        assert completion.text == tokenizer.decode(written, skip_special_tokens=True).removeprefix(
            tokenizer.decode(ids[0], skip_special_tokens=True)
        )
        assert completion.completion_tokens == 24
        assert completion.finish_reason == "length"


def decoder_of(folder: Path) -> Decoder:
    model = load_model(folder)
    assert isinstance(model, Decoder)
    return model


@pytest.mark.parametrize("on_torch", [True, False])
def test_step_by_step_is_the_whole_sequence(
    both: tuple[Any, Any, Path], on_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt in chunks, then tokens one by one, in a batch with another sequence, and after going back."""
    monkeypatch.setattr("moekit.inference.torch_runner._CHUNK", 5)
    monkeypatch.setattr("moekit.inference.native_runner._CHUNK", 5)
    runner = TorchRunner(decoder_of(both[2])) if on_torch else load(both[2]).runner
    tokens_T = torch.randint(runner.vocab_size, (30,))
    with torch.no_grad():
        expected_TV = both[0](tokens_T[None]).logits[0]
    cache, other, done = runner.new_cache(), runner.new_cache(), []
    logits = {12: prefill(runner, cache, tokens_T[:13], done.append)}
    assert done == [5, 5, 3]
    prefill(runner, other, tokens_T[:4])
    for index in range(13, 30):
        both_BV = decode(runner, [other, cache], tokens_T[[0, index]])
        logits[index] = both_BV[1]
    assert (cache.length, other.length) == (30, 21)
    cache.truncate(20)
    logits[-10] = decode(runner, [cache], tokens_T[20:21])[0]
    for index, logits_V in logits.items():
        assert logits_V.dtype == torch.float32
        assert (logits_V - expected_TV[index]).abs().max() <= 1e-5 * expected_TV.std()


def test_bf16_weights_have_a_bf16_cache(folder: Path) -> None:
    model = decoder_of(folder).bfloat16()
    runner = TorchRunner(model)
    cache = runner.new_cache()
    logits_V = prefill(runner, cache, torch.arange(9))
    assert cache.layers[0].key_BGPC.dtype == torch.bfloat16
    again_V = prefill(runner, runner.new_cache(), torch.arange(9))
    assert torch.equal(logits_V, again_V)
    with torch.no_grad():
        whole_V = model(torch.arange(9)[None])[0, -1].float()
    assert (logits_V - whole_V).abs().max() <= 2**-6 * whole_V.abs().max()


def test_a_batch_is_each_alone(loaded: LoadedModel) -> None:
    prompts = [PROMPT, "dogs", "def main(): return", "dogs"]
    options = GenerationOptions(max_tokens=20, stop=("e",), sampling=DRAWN)
    together = complete(loaded.runner, loaded.tokenizer, prompts, options)
    alone = [complete(loaded.runner, loaded.tokenizer, [prompt], options)[0] for prompt in prompts]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]
    assert together[1].text == together[3].text
    other = complete(loaded.runner, loaded.tokenizer, prompts, replace(options, sampling=replace(DRAWN, seed=6)))
    assert [one.text for one in other] != [one.text for one in together]


@pytest.mark.parametrize(
    ("said", "options", "text", "tokens", "reason"),
    [
        ("one, two", {}, "one, two", 9, "stop"),
        ("one, two", {"max_tokens": 3}, "one", 3, "length"),
        ("one STOP two", {"stop": ("STOP",)}, "one ", 8, "stop"),
        ("one STOP two", {"stop": ("STOPS", "TOP ")}, "one S", 9, "stop"),
        ("one STO", {"stop": ("STOP",)}, "one STO", 8, "stop"),
        ("one STOP", {"stop": ("STOP",), "max_tokens": 7}, "one STO", 7, "length"),
        ("ü€😀!", {}, "ü€😀!", 11, "stop"),
        ("ü€😀!", {"max_tokens": 7}, "ü€\ufffd", 7, "length"),
        ("aü", {"max_tokens": 2, "stop": ("\ufffd",)}, "a", 2, "stop"),
        ("x" * 60, {"context": 12}, "x" * 10, 10, "length"),
        ("", {}, "", 1, "stop"),
    ],
)
def test_ends(said: str, options: dict[str, Any], text: str, tokens: int, reason: str) -> None:
    completion, pieces = say(said, **options)
    assert (completion.text, completion.completion_tokens, completion.finish_reason) == (text, tokens, reason)
    assert completion.prompt_tokens == 2  # the start token, and one byte
    assert (completion.decode_tokens_per_second is None) == (tokens == 1)
    assert completion.prefill_tokens_per_second > 0
    assert completion.time_to_first_token_s > 0
    assert all(pieces)


class WithSpecial(ByteTokenizer):
    """Bytes, of which some that no text holds are special tokens."""

    special_tokens: Mapping[str, int] = {"<|turn|>": 0xF8, "<|end|>": 0xF9, "<|tool|>": 0xFA}

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode([id_ for id_ in ids if id_ not in self.special_tokens.values()])

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_plain(self, text: str) -> list[int]:
        return self.encode(text)


@pytest.mark.parametrize(
    ("said", "stop", "text", "reason"),
    [
        (b"one\xf8two", ("<|turn|>",), "one", "stop"),
        (b"\xf8two", ("<|turn|>",), "", "stop"),
        (b"one\xf8\xfatwo", ("<|turn|><|tool|>",), "one", "stop"),
        (b"one\xf8\xf8\xfatwo", ("<|turn|><|tool|>",), "one", "stop"),
        (b"one\xf8two", ("ne<|turn|>",), "o", "stop"),
        (b"one\xf8two", ("<|turn|>t",), "one", "stop"),
        (b"one\xf8two", ("e<|turn|>tw",), "on", "stop"),
        (b"one\xf8two", ("<|turn",), "one", "stop"),
        (b"one\xf8two", ("net",), "o", "stop"),
        (b"one\xf8two\xfa", ("<|tool|>", "<|turn|>x"), "onetwo", "stop"),
        (b"one\xf8two\xfathree", ("<|tool|>", "wo"), "onet", "stop"),
        (b"one\xf8two", ("<|turn|>x",), "onetwo", "length"),
        (b"one\xf8two", ("<|tool|>",), "onetwo", "length"),
        (b"one\xf9two", ("<|turn|>",), "one", "stop"),
        (b"one\xf9two", ("ne<|end|>",), "o", "stop"),
        ("😀\xf8".encode()[:4] + b"\xf8x", ("<|turn|>",), "😀", "stop"),
        (b"a\xe2\x82\xf8x", ("<|turn|>",), "a", "stop"),
    ],
)
def test_stop_strings_hold_special_tokens(said: bytes, stop: tuple[str, ...], text: str, reason: str) -> None:
    """Whole, in part and among text; what is shown never holds one, however it is cut into pieces."""
    pieces: list[str] = []
    options = GenerationOptions(max_tokens=len(said), stop=stop, end_tokens=frozenset({0xF9}))
    runner = Scripted(said)
    (completion,) = complete(runner, WithSpecial(), ["p"], options, lambda _, piece: pieces.append(piece))
    assert (completion.text, completion.finish_reason) == (text, reason)
    assert "".join(pieces) == text
    (again,) = complete(runner, WithSpecial(), ["p"], options)
    assert again.text == text


def test_text_comes_as_soon_as_it_is_certain() -> None:
    assert say("a😀STb", stop=("STOP",))[1] == ["a", "😀", "STb"]


def test_a_memory_saves_computing_what_it_holds() -> None:
    runner = Scripted(b"answer" + b"\0" * 50)
    prefix_cache = PrefixCache(runner.new_cache())
    options = GenerationOptions(end_tokens=frozenset({0}))
    ids = list(b"question")
    complete(runner, ByteTokenizer(), [ids], options, prefix_caches=[prefix_cache])
    assert bytes(prefix_cache.tokens) == b"questionanswer"  # what ended it was never computed
    assert prefix_cache.cache.length == len(prefix_cache.tokens)
    complete(runner, ByteTokenizer(), [list(b"questionanswer, more")], options, prefix_caches=[prefix_cache])
    complete(runner, ByteTokenizer(), [list(b"quest")], options, prefix_caches=[prefix_cache])
    complete(runner, ByteTokenizer(), [list(b"quest")], options, prefix_caches=[prefix_cache])
    assert runner.prefilled == [8, 6, 1, 1]


def test_an_interrupted_answer_leaves_a_memory_that_can_be_used(loaded: LoadedModel) -> None:
    runner = Scripted(b"answer" + b"\0" * 50)
    runner.fail_after = 3
    prefix_cache = PrefixCache(runner.new_cache())
    with pytest.raises(KeyboardInterrupt):
        complete(runner, ByteTokenizer(), [list(b"question")], prefix_caches=[prefix_cache])
    assert bytes(prefix_cache.tokens) == b"questionans"
    assert prefix_cache.cache.length == 12  # one more than is known to be whole

    def fail(_: int, piece: str) -> None:
        raise KeyboardInterrupt

    options = GenerationOptions(max_tokens=8)
    prefix_cache = PrefixCache(loaded.runner.new_cache())
    with pytest.raises(KeyboardInterrupt):
        complete(loaded.runner, loaded.tokenizer, [PROMPT], options, fail, prefix_caches=[prefix_cache])
    after = complete(loaded.runner, loaded.tokenizer, [PROMPT], options, prefix_caches=[prefix_cache])
    assert after[0].text == complete(loaded.runner, loaded.tokenizer, [PROMPT], options)[0].text


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([""], "The prompt is empty"),
        ([[]], "The prompt is empty"),
        (["ok", ""], "Prompt 2 is empty"),
        (["x " * 400], r"The prompt has \d+ tokens, and the context of 96 leaves no room"),
        ([[1] * 96], "The prompt has 96 tokens, and the context of 96"),
        ([[384]], "The prompt has token 384, and the model has 384"),
        (["\ud800"], "The prompt is not valid Unicode: surrogates not allowed"),
    ],
)
def test_prompts_that_cannot_be(loaded: LoadedModel, prompts: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}"):
        complete(loaded.runner, loaded.tokenizer, prompts)


def test_no_tokens_asked_for(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="max_tokens must be 1 or more, not 0"):
        complete(loaded.runner, loaded.tokenizer, ["a"], GenerationOptions(max_tokens=0))


def test_experts_that_see_what_comes_cannot_generate() -> None:
    leaky = MoEConfig(experts=2, expert_width=8, router=ExpertChoiceConfig(leaky=True))
    with pytest.raises(UsageError, match="cannot generate"):
        TorchRunner(Decoder(model_config((leaky,))))
    with pytest.raises(UsageError, match="context is 24 tokens; --context 25 is more"):
        TorchRunner(Decoder(model_config((MOE,))), 25)
