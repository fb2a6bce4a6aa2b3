"""Ensembles against a loop that adds up probabilities, token by token and for whole sequences."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import DENSE, MOE, model_config
from tests.inference.runner_logits import decode, prefill
from tests.inference.tiny_models import TOKENIZERS, byte_level, llama, save_tokenizer
from tokenizers import Tokenizer as Rust
from torch import Tensor

from moekit.agents.config.agents_config import LocalMemberConfig
from moekit.agents.config.strategy_configs import EnsembleConfig
from moekit.agents.members.ensemble import EnsembleRunner, check_same_encoding, ensemble_of
from moekit.agents.members.load_local import ensemble_member, load_local_members
from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message
from moekit.data.tokenizers import ByteTokenizer, FileTokenizer
from moekit.inference import GenerationOptions, LoadedModel, SamplingOptions, complete
from moekit.inference.generation import PrefixCache
from moekit.inference.torch_runner import TorchRunner
from moekit.kernels.packed import Numbers
from moekit.models import Decoder

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "an ensemble of models"


def models(count: int = 3) -> list[Decoder]:
    """Byte-level ones of random weights, dense and MoE."""
    plans = ((DENSE, DENSE), (DENSE, MOE), (MOE, MOE))
    return [Decoder(model_config(plans[index % 3])).eval() for index in range(count)]


def reference(parts: list[Decoder], weights: list[float], tokens: list[int]) -> list[list[float]]:
    """log Σ w_i p_i of each next token after each token, written out."""
    with torch.no_grad():
        logits = [model(torch.tensor([tokens]))[0].double().tolist() for model in parts]
    found = []
    for place in range(len(tokens)):
        mixed = [0.0] * 256
        for weight, rows in zip(weights, logits, strict=True):
            exponentials = [math.exp(value) for value in rows[place]]
            for token in range(256):
                mixed[token] += weight / sum(weights) * exponentials[token] / sum(exponentials)
        found.append([math.log(share) for share in mixed])
    return found


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [3.0, 1.0, 0.5], [0.1, 1e-6, 20.0]])
def test_the_mixture_is_that_of_the_loop_step_by_step_and_for_prompts(weights: list[float] | None) -> None:
    parts = models()
    runner = EnsembleRunner([TorchRunner(part) for part in parts], weights)
    tokens = ByteTokenizer().encode(TEXT)
    expected = torch.tensor(reference(parts, weights or [1.0] * 3, tokens))
    cache = runner.new_cache()
    steps = [prefill(runner, cache, torch.tensor(tokens[:1]))]
    steps += [decode(runner, [cache], torch.tensor([token]))[0] for token in tokens[1:]]
    torch.testing.assert_close(torch.stack(steps), expected, rtol=1e-5, atol=1e-5)
    assert cache.length == len(tokens)
    for length in (1, 7, len(tokens)):
        whole = prefill(runner, runner.new_cache(), torch.tensor(tokens[:length]))
        torch.testing.assert_close(whole, expected[length - 1], rtol=1e-5, atol=1e-5)
    average_of_logits = sum(part(torch.tensor([tokens]))[0, -1].log_softmax(-1) for part in parts) / 3
    assert not torch.allclose(average_of_logits, expected[-1], atol=1e-2), "a product of experts is another thing"


def test_sequences_of_a_batch_keep_apart() -> None:
    parts = models()
    runner = EnsembleRunner([TorchRunner(part) for part in parts])
    prompts = [[1, 2, 3], [9, 8, 7, 6, 5]]
    caches = [runner.new_cache() for _ in prompts]
    for cache, prompt in zip(caches, prompts, strict=True):
        prefill(runner, cache, torch.tensor(prompt))
    logits_BV = decode(runner, caches, torch.tensor([4, 40]))
    for row, prompt, token in zip(logits_BV, prompts, (4, 40), strict=True):
        expected = torch.tensor(reference(parts, [1.0] * 3, [*prompt, token])[-1])
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)


class Fixed:
    """A runner that always gives the same logits."""

    def __init__(self, logits_V: Tensor, context: int = 9) -> None:
        self.logits_V, self.vocab_size, self.context = logits_V, len(logits_V), context

    def new_cache(self) -> "Fixed":
        return self

    length = 0

    def truncate(self, length: int) -> None:
        self.length = length

    def prefill(self, cache: object, tokens_T: Sequence[int], on_tokens: object = None) -> Numbers:
        return self.logits_V.numpy()

    def decode(self, caches: object, tokens_B: Sequence[int]) -> Numbers:
        return self.logits_V.expand(len(tokens_B), -1).numpy()


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.lists(st.floats(-60, 60), min_size=5, max_size=5), min_size=1, max_size=4),
    scale=st.floats(1e-3, 1e3),
    data=st.data(),
)
def test_a_mixture_is_a_distribution_between_its_parts(
    logits: list[list[float]], scale: float, data: st.DataObject
) -> None:
    sizes = len(logits)
    weights = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=sizes, max_size=sizes))
    runners = [Fixed(torch.tensor(row)) for row in logits]

    def mixed(weights: list[float]) -> Tensor:
        runner = EnsembleRunner(runners, weights)
        return prefill(runner, runner.new_cache(), torch.tensor([0])).exp()

    shares_V = mixed(weights)
    parts_RV = torch.tensor(logits).softmax(-1)
    assert float(shares_V.sum()) == pytest.approx(1, abs=1e-5)
    assert (shares_V >= parts_RV.amin(0) * (1 - 1e-4) - 1e-30).all()
    assert (shares_V <= parts_RV.amax(0) * (1 + 1e-4) + 1e-30).all()
    torch.testing.assert_close(mixed([weight * scale for weight in weights]), shares_V, rtol=1e-4, atol=1e-7)


def test_a_token_that_one_model_rules_out_keeps_the_shares_of_the_others() -> None:
    runner = EnsembleRunner([Fixed(torch.tensor([0.0, -torch.inf])), Fixed(torch.tensor([0.0, 0.0]))])
    torch.testing.assert_close(
        decode(runner, [runner.new_cache()], torch.tensor([0]))[0].exp(), torch.tensor([0.75, 0.25])
    )


def test_a_padded_vocabulary_and_a_longer_context_are_cut() -> None:
    padded = Fixed(torch.tensor([0.0, math.log(3.0), 50.0]), context=20)
    runner = EnsembleRunner([padded, Fixed(torch.tensor([0.0, 0.0]))])
    assert (runner.vocab_size, runner.context) == (2, 9)
    shares_V = prefill(runner, runner.new_cache(), torch.tensor([0])).exp()
    torch.testing.assert_close(shares_V, torch.tensor([0.375, 0.625]))


def test_generate_works_unchanged_and_tells_of_the_prompt_once() -> None:
    parts = models()
    tokenizer = ByteTokenizer()
    runner = EnsembleRunner([TorchRunner(part) for part in parts], [1.0, 2.0, 3.0])
    counted: list[int] = []
    options = GenerationOptions(max_tokens=6)
    (found,) = complete(runner, tokenizer, [[5, 6, 7]], options, on_tokens=counted.append)
    ids = [5, 6, 7]
    for _ in range(6):
        row = reference(parts, [1.0, 2.0, 3.0], ids)[-1]
        ids.append(row.index(max(row)))
    assert found.text == tokenizer.decode(ids[3:])
    assert counted == [0, 0, 3], "a chunk of each of three models, which all have it after the last"
    alone, same = TorchRunner(parts[0]), EnsembleRunner([TorchRunner(parts[0])] * 2)
    drawn = GenerationOptions(max_tokens=12, sampling=SamplingOptions(temperature=1.0, seed=3))
    assert complete(alone, tokenizer, ["abc"], drawn)[0].text == complete(same, tokenizer, ["abc"], drawn)[0].text


def test_a_prompt_that_was_broken_off_is_forgotten_by_all_models() -> None:
    parts = models()
    runner = EnsembleRunner([TorchRunner(part) for part in parts])
    prefix_cache = PrefixCache(runner.new_cache())
    calls = 0

    def interrupt(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    options = GenerationOptions(max_tokens=5)
    with pytest.raises(KeyboardInterrupt):
        complete(runner, ByteTokenizer(), [[1, 2, 3, 4]], options, prefix_caches=[prefix_cache], on_tokens=interrupt)
    assert prefix_cache.tokens == []
    assert prefix_cache.cache.length == 0, "the third has seen nothing yet"
    (after,) = complete(runner, ByteTokenizer(), [[1, 2, 9]], options, prefix_caches=[prefix_cache])
    (fresh,) = complete(runner, ByteTokenizer(), [[1, 2, 9]], options)
    assert after.text == fresh.text


@pytest.mark.parametrize(
    ("count", "weights", "words"),
    [
        (0, None, "needs a model"),
        (2, [1.0], "of 2 models has 1 weights"),
        (2, [1.0, 0.0], "more than 0"),
        (2, [1.0, math.nan], "more than 0"),
        (2, [1.0, math.inf], "more than 0"),
    ],
)
def test_weights_are_checked(count: int, weights: list[float] | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EnsembleRunner([Fixed(torch.zeros(3))] * count, weights)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with tokenizers: `a` and `b` with the same, `merges` with its tokens and other merges, `fallback`."""
    root = tmp_path_factory.mktemp("ensemble")
    made = {name: root / name for name in ("a", "b", "merges", "fallback", "startless")}
    other = Rust.from_str(byte_level().to_str())
    shuffled = _with_other_merges(other)
    tokenizers = {"merges": shuffled, "fallback": TOKENIZERS["byte_fallback"]()}
    for seed, (name, folder) in enumerate(made.items()):
        llama(folder, initializer_range=0.02 * (1 + seed))
        save_tokenizer(tokenizers.get(name, byte_level()), folder)
    config = made["startless"] / "config.json"
    config.write_text(config.read_text().replace('"bos_token_id": 0', '"bos_token_id": 1'))
    return made


def _with_other_merges(tokenizer: Rust) -> Rust:
    """The same tokens, put together in the opposite order."""
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"].reverse()
    return Rust.from_str(json.dumps(state))


@pytest.mark.parametrize("other", ["merges", "fallback", "startless"])
def test_models_with_other_tokenizers_are_refused(folders: dict[str, Path], other: str) -> None:
    tokenizers = {name: FileTokenizer(folder) for name, folder in folders.items()}
    check_same_encoding(tokenizers["a"], tokenizers["b"], ("a", "b"))
    if other == "merges":
        words = [[tokenizers[name].decode([id_]) for id_ in range(384)] for name in ("a", other)]
        assert words[0] == words[1], "only their merges tell them apart"
    with pytest.raises(UsageError, match=f"^a and {other} cut text into tokens in different ways"):
        check_same_encoding(tokenizers["a"], tokenizers[other], ("a", other))
    with pytest.raises(UsageError, match="a and bytes"):
        check_same_encoding(tokenizers["a"], ByteTokenizer(), ("a", "bytes"))


def test_an_ensemble_is_a_member_made_of_members(folders: dict[str, Path]) -> None:
    configs = {name: LocalMemberConfig(path=str(folders[name]), max_tokens=9) for name in ("a", "b", "merges")}
    members = load_local_members(configs)
    both = ensemble_member("both", EnsembleConfig(members=("a", "b"), weights=(2.0, 1.0)), members)
    other = ensemble_member("both", EnsembleConfig(members=("a", "b"), weights=(1.0, 2.0)), members)
    assert both.defaults == members["a"].defaults == ChatOptions(temperature=0.7, max_tokens=9)
    assert len({both.identity, other.identity, members["a"].identity, members["b"].identity}) == 4
    text = "what the ensemble says"
    caches = {name: members[name].model.runner.new_cache() for name in ("a", "b")}
    expected, before = 0.0, 0
    for token in both.model.tokenizer.encode(text):
        shares = {
            name: prefill(members[name].model.runner, cache, torch.tensor([before])).softmax(-1)[token]
            for name, cache in caches.items()
        }
        expected += math.log((2 * float(shares["a"]) + float(shares["b"])) / 3)
        before = token
    assert asyncio.run(both.score((), text))[0] == pytest.approx(expected, rel=1e-5)
    hello = (Message(role="user", content="hi"),)
    reply = asyncio.run(both.complete(hello, ChatOptions(temperature=0.0, max_tokens=9)))
    assert reply.usage.prompt_tokens == both.bound_tokens(hello)
    with pytest.raises(UsageError, match=r"^strategies\.mixed: a and merges cut text"):
        ensemble_member("mixed", EnsembleConfig(members=("a", "merges")), members)
    configs = {
        "a": LocalMemberConfig(path=str(folders["a"]), max_tokens=40),
        "b": LocalMemberConfig(path=str(folders["b"]), max_tokens=9, context=40),
    }
    with pytest.raises(
        UsageError, match=r"^strategies\.both: max_tokens of a: 40 leave no room for .* context of 40\.$"
    ):
        ensemble_member("both", EnsembleConfig(members=("a", "b")), load_local_members(configs))


def test_any_models_end_ends_an_answer() -> None:
    def model(ends: set[int]) -> LoadedModel:
        runner = TorchRunner(models(1)[0])
        return LoadedModel(runner=runner, tokenizer=ByteTokenizer(), chat_template=None, end_tokens=frozenset(ends))

    assert ensemble_of([("a", model({0})), ("b", model({3, 0}))]).end_tokens == {0, 3}
