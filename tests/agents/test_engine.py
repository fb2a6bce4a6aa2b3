"""Engines over real HTTP: cache and replay, accounting, limits, keys, and what is found before any call."""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.agents.fault_server import Behaviour, Closed, Connection, Fail, FaultServer, Ok, Recorded, Truncated
from tests.agents.in_memory import QUESTION

from moekit.agents import AgentsConfig, Answer, AnswerFailed, Engine, ask
from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.config.agents_config import EndpointConfig, EndpointMemberConfig
from moekit.agents.members.endpoint import Endpoint, EndpointMember
from moekit.core.errors import MoekitError, UsageError
from moekit.core.messages import ChatOptions, Usage

T = TypeVar("T")

KEY = "sk-secret-1234567890"
PRICE = {"input": 1.0, "output": 3.0}


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    running.forget()
    for name in ("a", "b", "c"):
        running.behave(name, Ok(f"Answer of {name}."))
    return running


def config_of(server: FaultServer, **changes: Any) -> AgentsConfig:
    members = {name: {"endpoint": "e", "model": name, "max_tokens": 20, "price": PRICE} for name in ("a", "b", "c")}
    strategies = {"moa": {"kind": "moa", "layers": [["a", "b"]], "aggregator": "c"}}
    given = {"endpoints": {"e": {"url": server.url}}, "members": members, "strategies": strategies}
    return AgentsConfig.model_validate(given | changes)


def with_engine(config: AgentsConfig, use: Callable[[Engine], Awaitable[T]]) -> T:
    async def main() -> T:
        async with Engine(config) as engine:
            return await use(engine)

    return asyncio.run(main())


def answer(config: AgentsConfig, **options: Any) -> Answer:
    return with_engine(config, lambda engine: engine.answer(QUESTION, **options))


def spent_as_the_server_says(server: FaultServer, found: Answer) -> bool:
    return server.usage() == (found.usage.prompt_tokens, found.usage.completion_tokens)


# What comes out


def test_an_answer_says_what_it_took(server: FaultServer) -> None:
    server.behave("a", Fail(400))
    found = answer(config_of(server))
    assert found.text == "Answer of c."
    assert found.finish_reason == "stop"
    assert spent_as_the_server_says(server, found)
    assert found.unsettled == Usage()
    assert found.cost == pytest.approx(
        (found.usage.prompt_tokens * 1.0 + found.usage.completion_tokens * 3.0) / 1e6, rel=1e-12
    )
    assert sum(call.money or 0 for call in found.trace.calls) == pytest.approx(found.cost, rel=1e-12)
    assert found.failures == ("a: its server answered with status 400: told to fail.",)


def test_without_an_event_loop(server: FaultServer) -> None:
    assert ask(config_of(server), "Why?", "b").text == "Answer of b."
    assert server.of("b")[0].messages == [{"role": "user", "content": "Why?"}]
    assert ask(config_of(server), QUESTION, options=ChatOptions(temperature=0.1)).text == "Answer of c."
    assert server.of("c")[0].body["temperature"] == 0.1


def test_a_failed_answer_says_what_was_tried(server: FaultServer) -> None:
    server.behave("a", Fail(400))
    server.behave("b", Truncated())
    with pytest.raises(AnswerFailed) as error:
        answer(config_of(server, retries=0))
    assert str(error.value) == (
        "In layer 1, 0 of 2 answered and 1 had to: a: its server answered with status 400: told to fail. "
        "b: the connection broke in the middle of its answer."
    )
    assert error.value.exit_status == 1
    assert error.value.trace.failures == tuple(re.findall(r"[ab]: .*?\.", str(error.value)))
    assert error.value.spent.unsettled.total_tokens > 0
    assert server.of("c") == []


def test_every_name_is_a_model_to_be_served(server: FaultServer) -> None:
    async def use(engine: Engine) -> None:
        assert list(engine.models) == ["moa", "a", "b", "c"]
        server.behave("a", Fail(400))
        heard = []

        async def hear(piece: str) -> None:
            heard.append(piece)

        told = await engine.models["moa"].chat(QUESTION, ChatOptions(), hear)
        assert told.reply.text == "".join(heard) == "Answer of c."
        assert server.usage() == (told.reply.usage.prompt_tokens, told.reply.usage.completion_tokens)
        assert told.extra is not None
        assert told.extra["failures"] == ["a: its server answered with status 400: told to fail."]
        json.dumps(told.extra)

    with_engine(config_of(server), use)


def test_what_cannot_be_asked(server: FaultServer) -> None:
    with pytest.raises(UsageError, match=r"^There is no strategy or member 'mao': did you mean 'moa'\?$"):
        answer(config_of(server), name="mao")
    with pytest.raises(UsageError, match=r"^There is no message to answer\.$"):
        with_engine(config_of(server), lambda engine: engine.answer([]))


def test_endpoints_are_looked_for_before_any_call(server: FaultServer) -> None:
    with_engine(config_of(server), lambda engine: engine.check())
    assert server.requests == []
    nowhere = config_of(server, endpoints={"e": {"url": "http://127.0.0.1:9/v1"}})
    with pytest.raises(
        UsageError, match=r"^endpoints\.e\.url: nothing answers at http://127\.0\.0\.1:9/v1\.$"
    ) as error:
        with_engine(nowhere, lambda engine: engine.check())
    assert error.value.exit_status == 2


# The cache


def test_a_warm_cache_makes_no_call_and_the_same_answer(server: FaultServer, tmp_path: Path) -> None:
    config = config_of(server, cache={"folder": tmp_path})
    server.behave("c", Ok(lambda body: f"{random.random()} – Grüße."))
    cold = answer(config)
    assert spent_as_the_server_says(server, cold)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    server.forget()
    warm = answer(config)
    assert server.requests == []
    assert warm.text.encode() == cold.text.encode()
    assert (warm.usage, warm.unsettled, warm.cost) == (Usage(), Usage(), 0)
    # Who of a layer ends first is anybody's guess. What it would have cost is still known.
    there, again = ({call.name: (call.text, call.usage) for call in found.trace.calls} for found in (cold, warm))
    assert again == there
    assert all(call.cached and call.attempts == 0 and call.money == 0 for call in warm.trace.calls)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.json")} == files


def test_a_replay_asks_nobody_and_says_what_is_missing(server: FaultServer, tmp_path: Path) -> None:
    cold = answer(config_of(server, cache={"folder": tmp_path}))
    replay = config_of(
        server,
        cache={"folder": tmp_path, "mode": "only"},
        endpoints={"e": {"url": server.url, "key_variable": "NO_KEY"}},
    )
    server.forget()
    assert answer(replay).text == cold.text
    with pytest.raises(AnswerFailed, match=r"a was not asked this before: .* b was not asked this before: "):
        answer(replay, options=ChatOptions(temperature=0.0))
    with_engine(replay, lambda engine: engine.check())
    assert server.requests == []
    assert server.connections == 0


@pytest.mark.parametrize("member", ["a", "moa"])
def test_samples_are_different_answers_in_the_cache_too(member: str, server: FaultServer, tmp_path: Path) -> None:
    """Of a member, and of a strategy whose members get the same questions in each sample."""
    numbers = iter(range(1000))
    for name in ("a", "b", "c"):
        server.behave(name, Ok(lambda body: f"number {next(numbers)}"))
    strategies = {
        "moa": {"kind": "moa", "layers": [["a", "b"]], "aggregator": "c"},
        "many": {"kind": "self-moa", "member": member, "samples": 4, "aggregator": "c"},
    }
    config = config_of(server, strategies=strategies, cache={"folder": tmp_path})
    cold = answer(config, name="many")
    texts = [call.text for call in cold.trace.calls]
    assert len(set(texts)) == len(texts) == len(server.requests)
    server.forget()
    warm = answer(config, name="many")
    assert server.requests == []
    assert sorted(call.text or "" for call in warm.trace.calls) == sorted(text or "" for text in texts)
    assert warm.text == cold.text


# Accounting


def test_usage_is_the_servers_own_count_whatever_fails_on_the_way(server: FaultServer) -> None:
    server.behave("a", Fail(500), Ok("one two three"))
    server.behave("b", Fail(429, retry_after="0.01"), Ok(""))
    found = answer(config_of(server))
    assert spent_as_the_server_says(server, found)
    assert found.unsettled == Usage()
    assert len(server.requests) == 5


def test_what_nobody_told_is_an_upper_bound(server: FaultServer) -> None:
    server.behave("a", Closed())
    server.behave("b", Ok(usage=None))
    server.behave("c", Ok(usage={"prompt_tokens": -5}))
    found = answer(config_of(server, retries=0))
    assert found.usage == Usage()
    read, written = server.usage()
    assert found.unsettled.prompt_tokens >= read
    assert found.unsettled.completion_tokens == 3 * 20 >= written
    assert found.cost == 0
    assert found.unsettled_cost is not None
    assert found.unsettled_cost > 0


def test_random_answers_over_http_never_cost_more_than_their_budget(server: FaultServer) -> None:
    """Side by side, each with members of its own, so that the server can tell what each has cost."""
    draw, tokens, count = random.Random(7), 700, 30
    kinds: list[Behaviour] = [Ok("one two three"), Fail(429, retry_after="0.01"), Truncated(), Closed(), Ok(usage=None)]
    members, strategies = {}, {}
    for number in range(count):
        a, b, c = (f"{name}{number}" for name in "abc")
        for name in (a, b, c):
            server.behave(name, *draw.choices(kinds, [4, 2, 1, 1, 1], k=2), Ok("fine"))
            members[name] = {"endpoint": "e", "model": name, "max_tokens": draw.randint(5, 150)}
        strategies[f"moa{number}"] = {"kind": "moa", "layers": [[a, b]], "aggregator": c}
    config = config_of(server, members=members, strategies=strategies, budget={"tokens": tokens}, retries=1)

    async def one(engine: Engine, number: int) -> bool:
        try:
            found = await engine.answer(QUESTION, f"moa{number}")
        except AnswerFailed as error:
            answered, usage, unsettled = False, error.spent.usage, error.spent.unsettled
        else:
            answered, usage, unsettled = True, found.usage, found.unsettled
        really = sum(
            request.prompt_tokens + request.completion_tokens
            for name in "abc"
            for request in server.of(f"{name}{number}")
        )
        assert really <= usage.total_tokens + unsettled.total_tokens <= tokens
        return answered

    async def use(engine: Engine) -> list[bool]:
        return await asyncio.gather(*(one(engine, number) for number in range(count)))

    assert set(with_engine(config, use)) == {True, False}


# Limits


def test_a_server_never_sees_more_than_it_allows(server: FaultServer) -> None:
    """Windows of a third of a second, by the server's own clock."""
    window_s, requests, tokens = 0.35, 5, 600
    server.behave("a", Ok("one two three four", delay=0.05))

    async def main() -> None:
        settings = EndpointConfig(url=server.url, concurrency=3, requests_per_minute=requests, tokens_per_minute=tokens)
        endpoint, limits = Endpoint("e", settings, None), Limits("e", settings, window_s=window_s)
        member = EndpointMember("a", EndpointMemberConfig(endpoint="e", model="a"), endpoint)

        async def call() -> None:
            most = Usage(prompt_tokens=member.bound_tokens(QUESTION), completion_tokens=20)
            async with limits.slot(most.total_tokens) as answered:
                answered((await member.complete(QUESTION, ChatOptions(max_tokens=20))).usage)

        await asyncio.gather(*(call() for _ in range(16)))
        await endpoint.close()

    asyncio.run(main())
    assert len(server.requests) == 16
    assert server.most_at_once() <= 3
    assert server.most_in(window_s) <= requests
    assert server.most_tokens_in(window_s) <= tokens


def test_concurrency_is_that_of_the_endpoint_whoever_asks(server: FaultServer) -> None:
    for name in ("a", "b", "c"):
        server.behave(name, Ok("x", delay=0.05))
    config = config_of(server, endpoints={"e": {"url": server.url, "concurrency": 2}})

    async def use(engine: Engine) -> None:
        await asyncio.gather(*(engine.answer(QUESTION) for _ in range(4)))

    with_engine(config, use)
    assert len(server.requests) == 12
    assert server.most_at_once() == 2


# Keys


class EchoesKey(Behaviour):
    """Sends the key back as its answer, or as its error."""

    def __init__(self, status: int = 200) -> None:
        self.status = status

    async def answer(self, request: Recorded, connection: Connection) -> None:
        key = request.headers["authorization"].removeprefix("Bearer ")
        choice = {"message": {"role": "assistant", "content": f"Your key is {key}"}, "finish_reason": "stop"}
        body = {"object": "chat.completion", "choices": [choice], "error": {"message": f"{key} is bad", "code": key}}
        await connection.whole(self.status, json.dumps(body).encode(), "application/json", ("X-Key", key))


def test_keys_are_in_no_trace_no_cache_no_error_and_no_log(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    caplog.set_level("INFO")
    server.behave("a", EchoesKey())
    server.behave("b", EchoesKey(500))
    config = config_of(
        server,
        endpoints={"e": {"url": server.url, "key_variable": "TEST_KEY"}},
        cache={"folder": tmp_path},
        retries=1,
    )
    found = answer(config)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    told = found.trace.model_dump_json() + repr(found) + repr(config)
    assert "Your key is [key]" in told
    assert "[key] is bad" in told
    server.behave("a", EchoesKey(400))
    with pytest.raises(AnswerFailed) as error:
        answer(config, options=ChatOptions(seed=1))
    told += str(error.value) + error.value.trace.model_dump_json() + _chain(error.value)
    for name in ("a", "b", "c"):  # what later stages are sent is what earlier ones said
        told += json.dumps([request.body for request in server.of(name)])
    told += caplog.text + "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    assert KEY not in told


def _chain(error: BaseException | None) -> str:
    return "" if error is None else repr(error) + _chain(error.__cause__) + _chain(error.__context__)


# Coming and going


def test_whoever_goes_away_stops_all_calls(server: FaultServer) -> None:
    for name in ("a", "b"):
        server.behave(name, Ok("x", delay=30))

    async def use(engine: Engine) -> None:
        task = asyncio.create_task(engine.answer(QUESTION))
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_engine(config_of(server), use)
    server.wait_until_idle()
    assert [request.cancelled for request in server.requests] == [True, True]


def test_an_engine_that_cannot_start_leaves_nothing_open(server: FaultServer, tmp_path: Path) -> None:
    members = {"a": {"endpoint": "e", "model": "a"}, "mine": {"path": str(tmp_path / "nothing")}}
    with pytest.raises(MoekitError, match=r"mine|nothing"):
        answer(config_of(server, members=members, strategies={}, default="a"))
