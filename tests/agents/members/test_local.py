"""Local members against transformers and `generate`, and what the event loop sees of them."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.inference.runner_logits import prefill
from tests.inference.tiny_models import TOKENIZERS, llama, save_tokenizer

from moekit.agents.config.agents_config import LocalMemberConfig
from moekit.agents.members.load_local import load_local_members, model_identity
from moekit.agents.members.local import LocalMember, LockedRunner
from moekit.agents.members.member import Embedder, Member, MemberError, Scorer
from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message, Usage
from moekit.data.tokenizers import ByteTokenizer
from moekit.inference import GenerationOptions, LoadedModel, complete
from moekit.inference.model_sampling import ModelSampling
from moekit.inference.runner import OnTokens
from moekit.kernels.packed import Numbers

pytestmark = pytest.mark.usefixtures("one_thread")

USER = (Message(role="user", content="The quick brown fox"),)
GREEDY = ChatOptions(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A Llama with a byte-level tokenizer and a chat template: transformers' model and tokenizer, and the folder."""
    folder = tmp_path_factory.mktemp("llama")
    model = llama(folder)
    return model.eval(), save_tokenizer(TOKENIZERS["byte_level"](), folder), folder


@pytest.fixture(scope="module")
def member(theirs: tuple[Any, Any, Path]) -> LocalMember:
    return load_local_members({"tiny": LocalMemberConfig(path=str(theirs[2]), max_tokens=12)})["tiny"]


class Slow:
    """A byte-level runner that writes `text` and waits before each token until it is let on."""

    vocab_size = 256

    def __init__(self, text: bytes, context: int = 64) -> None:
        self.text, self.context = text, context
        self.steps = 0
        self.turn = threading.Semaphore(0)
        self.at_work = threading.Event()
        self.most_at_once = self._at_once = 0
        self.pause_s = 0.0

    def new_cache(self) -> "SlowCache":
        return SlowCache()

    def prefill(self, cache: Any, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        cache.length += len(tokens_T)
        cache.written = 0
        if on_tokens is not None:
            on_tokens(len(tokens_T))
        return self._step(cache)

    def decode(self, caches: Sequence[Any], tokens_B: Sequence[int]) -> Numbers:
        for cache in caches:
            cache.length += 1
        return np.stack([self._step(cache) for cache in caches])

    def _step(self, cache: "SlowCache") -> Numbers:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.at_work.set()
        assert self.turn.acquire(timeout=30), "nobody let it on"
        time.sleep(self.pause_s)
        self._at_once -= 1
        self.steps += 1
        logits_V = np.zeros(256, np.float32)
        logits_V[self.text[cache.written % len(self.text)]] = 20
        cache.written += 1
        return logits_V


class SlowCache:
    def __init__(self) -> None:
        self.length = self.written = 0

    def truncate(self, length: int) -> None:
        self.length = length


def slow_member(runner: Slow) -> LocalMember:
    model = LoadedModel(runner=runner, tokenizer=ByteTokenizer(), chat_template=None, end_tokens=frozenset({0}))
    return LocalMember("slow", model, identity="slow", defaults=ChatOptions(max_tokens=8))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def in_time() -> Any:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(in_time())


async def until(there: Callable[[], bool]) -> None:
    while not there():
        await asyncio.sleep(0.001)


def test_it_is_a_member_that_scores_and_embeds(member: LocalMember) -> None:
    is_member: Member = member
    assert isinstance(is_member, Scorer)
    assert isinstance(is_member, Embedder)
    assert is_member.defaults == ChatOptions(temperature=0.7, max_tokens=12)
    assert is_member.context == 96
    assert is_member.price is None


def test_answers_are_what_generate_writes_after_the_chat_template(
    theirs: tuple[Any, Any, Path], member: LocalMember
) -> None:
    conversation = (
        *USER,
        Message(role="assistant", content="jumps"),
        Message(role="user", content="over <|end|> what?"),
    )
    said = [{"role": message.role, "content": message.content} for message in conversation]
    ids = member.model.chat_template.encode(said, member.model.tokenizer)  # type: ignore[union-attr]
    options = GenerationOptions(max_tokens=12, end_tokens=member.model.end_tokens)
    (expected,) = complete(member.model.runner, member.model.tokenizer, [ids], options)
    reply = run(member.complete(conversation, GREEDY))
    assert reply.text == expected.text
    assert reply.finish_reason == expected.finish_reason
    assert reply.usage == Usage(prompt_tokens=len(ids), completion_tokens=expected.completion_tokens)
    assert member.bound_tokens(conversation) == len(ids)
    # A word of a message that reads like a special token is text: more tokens than transformers makes of it.
    assert len(ids) > len(theirs[1].apply_chat_template(said, add_generation_prompt=True)["input_ids"])


def test_a_model_without_a_template_continues_the_contents(member: LocalMember) -> None:
    plain = LoadedModel(
        runner=member.model.runner,
        tokenizer=member.model.tokenizer,
        chat_template=None,
        end_tokens=member.model.end_tokens,
    )
    base = LocalMember("base", plain, identity="", defaults=ChatOptions())
    (expected,) = complete(plain.runner, plain.tokenizer, ["Be brief.\n\nThe quick"], GenerationOptions(max_tokens=12))
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="The quick"))
    reply = run(base.complete(messages, GREEDY))
    assert reply.text == expected.text
    assert reply.usage.prompt_tokens == expected.prompt_tokens == base.bound_tokens(messages)
    hostile = (Message(role="user", content="The quick <|end|>"),)
    assert base.bound_tokens(hostile) > len(plain.tokenizer.encode("The quick <|end|>")) + 1, "it is text, no token"


def test_a_seed_decides_and_another_one_decides_otherwise(member: LocalMember) -> None:
    async def answers() -> list[str]:
        options = [ChatOptions(temperature=2.0, max_tokens=20, seed=seed) for seed in (1, 1, 2)]
        return [(await member.complete(USER, each)).text for each in options]

    first, again, other = run(answers())
    assert first == again != other


def test_a_log_probability_is_transformers(theirs: tuple[Any, Any, Path], member: LocalMember) -> None:
    def expected(prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logits_TV = theirs[0](torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        return sum(float(logits_TV[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))

    answer = "jumps over <s> the lazy dog"
    answer_ids = member.model.tokenizer.encode_plain(answer)  # type: ignore[attr-defined]
    assert 0 not in answer_ids
    prompt = theirs[1].apply_chat_template([{"role": "user", "content": USER[0].content}], add_generation_prompt=True)
    after, used = run(member.score(USER, answer))
    assert after == pytest.approx(expected(prompt["input_ids"], answer_ids), rel=1e-5)
    assert used == Usage(prompt_tokens=len(prompt["input_ids"]) + len(answer_ids))
    alone, used = run(member.score((), answer))
    assert used == Usage(prompt_tokens=1 + len(answer_ids))
    assert alone == pytest.approx(expected([0], answer_ids), rel=1e-5)
    assert alone != pytest.approx(after, rel=1e-3)
    assert run(member.score(USER, ""))[0] == 0


def test_a_text_without_a_start_token_is_scored_from_its_second_token(member: LocalMember) -> None:
    model, text = member.model, "quick brown"
    ids = model.tokenizer.encode(text)
    tokenizer = type(model.tokenizer)(Path(member.identity.rsplit(" ", 1)[0]))  # type: ignore[call-arg]
    tokenizer.start = None
    bare = LoadedModel(runner=model.runner, tokenizer=tokenizer, chat_template=None, end_tokens=frozenset())
    startless = LocalMember("startless", bare, identity="", defaults=ChatOptions())
    cache = model.runner.new_cache()
    total = 0.0
    for token, following in pairwise(ids):
        logits_V = prefill(model.runner, cache, torch.tensor([token]))
        total += float(logits_V.double().log_softmax(-1)[following])
    assert run(startless.score((), text)) == (pytest.approx(total, rel=1e-6), Usage(prompt_tokens=len(ids)))
    assert run(startless.score((), "q"))[0] == 0


def test_vectors_are_the_means_of_transformers_last_hidden_states(
    theirs: tuple[Any, Any, Path], member: LocalMember
) -> None:
    texts = ["The quick brown fox", "def main(): return", "dog " * 200, ""]
    vectors, usage = run(member.embed(texts))
    ids = [[0, *member.model.tokenizer.encode(text)][:96] for text in texts]
    assert usage == Usage(prompt_tokens=sum(map(len, ids)))
    assert len(ids[2]) == 96
    for vector, each in zip(vectors, ids, strict=True):
        with torch.no_grad():
            states = theirs[0](torch.tensor([each]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(torch.tensor(vector), states[-1][0].mean(0), rtol=1e-4, atol=1e-5)


def test_the_event_loop_is_free_and_pieces_come_as_they_are_made() -> None:
    runner = Slow(b"abcdefgh")
    pieces: list[str] = []

    async def heard(piece: str) -> None:
        if piece:  # an empty one says that the model is at work
            pieces.append(piece)

    async def answer() -> str:
        task = asyncio.create_task(slow_member(runner).complete(USER, GREEDY, heard))
        for count in range(1, 5):
            # It waits for us in another thread: only a free loop gets here to let it on.
            runner.turn.release()
            await until(lambda: len(pieces) == count)  # noqa: B023
            assert not task.done()
        for _ in range(20):
            runner.turn.release()
        return str((await task).text)

    text = run(answer())
    assert "".join(pieces) == text == "abcdefghabcd"


def test_who_waits_for_a_call_before_it_sees_the_model_at_work() -> None:
    """A queue of calls is no silence: what the model computes for one of them is told to all."""
    runner = Slow(b"abcdefgh")
    member = slow_member(runner)
    heard: list[list[str]] = [[], []]

    async def ask(place: int) -> str:
        async def hear(piece: str) -> None:
            heard[place].append(piece)

        return (await member.complete(USER, GREEDY, hear)).text

    async def answer() -> None:
        first = asyncio.create_task(ask(0))
        await until(runner.at_work.is_set)
        second = asyncio.create_task(ask(1))
        await asyncio.sleep(0.05)
        for _ in range(3):
            runner.turn.release()
        await until(lambda: len(heard[1]) > 1)
        assert "".join(heard[1]) == ""
        for _ in range(100):
            runner.turn.release()
        assert await asyncio.gather(first, second) == ["abcdefghabcd"] * 2

    run(answer())


def test_an_answer_that_a_limit_ended_says_so() -> None:
    async def ask(most: int, context: int) -> str | None:
        runner = Slow(b"abcdefgh", context=context)
        for _ in range(100):
            runner.turn.release()
        reply = await slow_member(runner).complete(USER, ChatOptions(temperature=0.0, max_tokens=most))
        assert reply.finish_reason == "length"
        return reply.incomplete

    prompt = len(USER[0].content.encode()) + 1
    assert run(ask(4, 64)) == "slow: the answer was cut off at max_tokens, 4."
    assert run(ask(20, prompt + 6)) == (
        "slow: the answer was cut off after 6 tokens, where its context is full or its server has a limit."
    )


def test_cancelling_ends_the_work_between_two_tokens_and_frees_the_model() -> None:
    runner = Slow(b"abcdefgh")
    member = slow_member(runner)

    async def answer() -> str:
        first = asyncio.create_task(member.complete(USER, GREEDY))
        await until(runner.at_work.is_set)
        waiting = asyncio.create_task(member.complete(USER, GREEDY))
        unwanted = asyncio.create_task(member.complete(USER, GREEDY))
        await asyncio.sleep(0.01)
        unwanted.cancel()
        first.cancel()
        # At once, although the step that is under way still waits.
        with pytest.raises(asyncio.CancelledError):
            await first
        assert runner.steps == 0
        for _ in range(100):
            runner.turn.release()
        return str((await waiting).text)

    assert run(answer()) == "abcdefghabcd"
    assert runner.steps == 1 + 12, "the one that was under way, and the twelve of the answer that was waited for"


def test_what_on_text_raises_ends_the_work() -> None:
    runner = Slow(b"abcdefgh")

    async def broken(piece: str) -> None:
        raise ConnectionResetError("the client left")

    async def answer() -> None:
        runner.turn.release()
        with pytest.raises(ConnectionResetError):
            await slow_member(runner).complete(USER, GREEDY, broken)
        for _ in range(100):
            runner.turn.release()
        await asyncio.sleep(0.05)

    run(answer())
    assert runner.steps <= 2


def test_closing_ends_what_is_under_way() -> None:
    runner = Slow(b"abcdefgh")
    member = slow_member(runner)

    async def answer() -> None:
        task = asyncio.create_task(member.complete(USER, GREEDY))
        await until(runner.at_work.is_set)
        await member.close()
        runner.turn.release()
        with pytest.raises(MemberError, match="slow: it was closed"):
            await task

    run(answer())


def test_many_conversations_at_once_are_computed_one_after_the_other() -> None:
    runner = Slow(b"abcdefgh")
    runner.turn = threading.Semaphore(100_000)
    member = slow_member(runner)

    async def answers() -> list[str]:
        replies = await asyncio.gather(*(member.complete(USER, GREEDY) for _ in range(100)))
        return [reply.text for reply in replies]

    assert run(answers()) == ["abcdefghabcd"] * 100
    assert runner.most_at_once == 1


def test_members_that_share_a_model_compute_in_turns() -> None:
    runner = Slow(b"abcdefgh")
    runner.turn, runner.pause_s = threading.Semaphore(100_000), 0.002
    model = slow_member(runner).model
    shared = replace(model, runner=LockedRunner(runner))
    members = [LocalMember(name, shared, identity="", defaults=ChatOptions()) for name in "ab"]

    async def answers() -> list[str]:
        return [reply.text for reply in await asyncio.gather(*(member.complete(USER, GREEDY) for member in members))]

    assert run(answers()) == ["abcdefghabcd"] * 2
    assert runner.most_at_once == 1


class Broken(Slow):
    def _step(self, cache: SlowCache) -> Numbers:
        return np.full(256, np.nan, np.float32)


@pytest.mark.parametrize(
    ("runner", "messages", "options", "reason", "words"),
    [
        (Slow(b"x", context=8), USER, GREEDY, "context", "21 tokens are more than its context of 8"),
        (Slow(b"x"), (Message(role="user", content=""),), GREEDY, "refused", "the prompt is empty"),
        (Slow(b"x"), USER, ChatOptions(top_p=0.0), "refused", "top_p must be"),
        (Slow(b"x"), USER, ChatOptions(stop=("",)), "refused", "A stop string is empty"),
        (Slow(b"\0"), USER, GREEDY, "empty", "the answer is empty"),
        (Broken(b"x"), USER, GREEDY, "garbage", "logits are not numbers"),
    ],
)
def test_what_goes_wrong_is_one_sentence_with_a_reason(
    runner: Slow, messages: tuple[Message, ...], options: ChatOptions, reason: str, words: str
) -> None:
    runner.turn = threading.Semaphore(1000)
    with pytest.raises(MemberError, match=words) as caught:
        run(slow_member(runner).complete(messages, options))
    assert caught.value.reason == reason
    assert not caught.value.retryable
    assert str(caught.value).startswith("slow: ")
    assert str(caught.value).count(".") == 1 + str(caught.value).count("0.0")
    assert (caught.value.usage != Usage()) == (reason == "empty"), "what was computed was spent"


def test_a_score_that_does_not_fit_and_a_member_without_vectors_say_so() -> None:
    member = slow_member(Slow(b"x"))
    with pytest.raises(MemberError, match="more than its context of 64"):
        run(member.score(USER, "x" * 60))
    with pytest.raises(MemberError, match="makes no vectors"):
        run(member.embed(["x"]))


def test_a_broken_template_is_an_error_of_the_member(theirs: tuple[Any, Any, Path], tmp_path: Path) -> None:
    for file in theirs[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for source, said, reason in (
        ("{{ messages.x.y }}", "The chat template fails: 'list object' has no attribute 'x'", "garbage"),
        (
            "{{ raise_exception('no such role') }}",
            "The chat template refuses the conversation: no such role",
            "refused",
        ),
    ):
        (tmp_path / "chat_template.jinja").write_text(source)
        member = load_local_members({"tiny": LocalMemberConfig(path=str(tmp_path))})["tiny"]
        with pytest.raises(MemberError, match=f"tiny: {said}.") as caught:
            member.bound_tokens(USER)
        assert caught.value.reason == reason


def test_variables_of_the_template_reach_it(theirs: tuple[Any, Any, Path], tmp_path: Path) -> None:
    for file in theirs[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ '!' * (excited | default(1)) }}")
    member = load_local_members({"tiny": LocalMemberConfig(path=str(tmp_path))})["tiny"]
    counts = [
        run(member.complete(USER, replace(GREEDY, template_variables=variables))).usage.prompt_tokens
        for variables in ({}, {"excited": 5}, {}, {"excited": 0})
    ]
    assert counts[0] == counts[2] == member.bound_tokens(USER)
    assert counts[1] > counts[0] > counts[3]


def test_without_a_temperature_the_models_files_say_how_it_is_sampled(theirs: tuple[Any, Any, Path]) -> None:
    model = load_local_members({"tiny": LocalMemberConfig(path=str(theirs[2]))})["tiny"].model
    wild = replace(model, sampling=ModelSampling({"temperature": 3.0, "top_k": 1}))
    member = LocalMember("wild", wild, identity="", defaults=ChatOptions())
    greedy = run(member.complete(USER, GREEDY)).text
    assert run(member.complete(USER, replace(GREEDY, temperature=None))).text == greedy
    assert run(member.complete(USER, replace(GREEDY, temperature=3.0, seed=1))).text != greedy


def test_a_template_without_system_messages_gets_them_with_the_users(
    theirs: tuple[Any, Any, Path], tmp_path: Path
) -> None:
    for file in theirs[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refusing = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ message['role'] + ': ' + message['content'] + '|' }}{% endfor %}"
    )
    (tmp_path / "chat_template.jinja").write_text(refusing)
    member = load_local_members({"tiny": LocalMemberConfig(path=str(tmp_path))})["tiny"]
    system, other = Message(role="system", content="Be brief."), Message(role="assistant", content="Yes?")
    ids = member.model.tokenizer.encode
    assert member.bound_tokens((system, *USER, other)) == len(
        ids(f"user: Be brief.\n\n{USER[0].content}|assistant: Yes?|")
    )
    with pytest.raises(MemberError, match="no system"):
        member.bound_tokens((*USER, system))


def test_half_a_surrogate_pair_in_a_message_or_an_answer_does_no_harm(member: LocalMember) -> None:
    half = (Message(role="user", content="The \ud83d fox"),)
    assert member.bound_tokens(half) == member.bound_tokens((Message(role="user", content="The ? fox"),))
    assert run(member.score(half, "a \udc00"))[0] == pytest.approx(run(member.score(half, "a ?"))[0])
    assert run(member.complete(half, GREEDY)).text


def test_members_of_one_path_share_the_model(theirs: tuple[Any, Any, Path]) -> None:
    path = str(theirs[2])
    alike = {"one": LocalMemberConfig(path=path), "two": LocalMemberConfig(path=path, temperature=1.5)}
    with pytest.raises(UsageError, match=r"^members\.long: .*2,000 is more"):
        load_local_members({"long": LocalMemberConfig(path=path, context=2000)})
    for max_tokens in (96, 1000):
        with pytest.raises(
            UsageError, match=r"^members\.long\.max_tokens: [0-9,]+ leave no room for .* context of 96\.$"
        ):
            load_local_members({"long": LocalMemberConfig(path=path, max_tokens=max_tokens)})
    members = load_local_members(alike | {"short": LocalMemberConfig(path=path, context=40, max_tokens=8)})
    assert members["one"].model is members["two"].model
    assert members["two"].defaults.temperature == 1.5
    assert (members["short"].context, members["short"].defaults.max_tokens) == (40, 8)
    assert members["one"].defaults.max_tokens == 48, "half of the context, where nothing is said"


def test_a_model_written_anew_is_another(theirs: tuple[Any, Any, Path], tmp_path: Path) -> None:
    for file in theirs[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = model_identity(str(tmp_path))
    assert model_identity(str(tmp_path)) == before
    status = (tmp_path / "model.safetensors").stat()
    os.utime(tmp_path / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert model_identity(str(tmp_path)) != before
