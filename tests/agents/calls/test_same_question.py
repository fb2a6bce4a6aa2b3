"""The same asked twice at once, with a cache: one call, whose outcome both get."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.agents.fault_server import Fail, FaultServer, Hang, Ok
from tests.agents.in_memory import OPTIONS, QUESTION, FakeMember, after, config_of, now

from moekit.agents import AgentsConfig, Answer, AnswerFailed, Engine
from moekit.agents.calls.answer_cache import Cache
from moekit.agents.calls.budget_ledger import Ledger
from moekit.agents.calls.member_calls import MemberCalls, Place
from moekit.agents.calls.retried_call import Seat
from moekit.agents.config.agents_config import BudgetConfig, CacheConfig
from moekit.agents.members.member import MemberError
from moekit.agents.outcome.trace import TraceRecorder
from moekit.core.errors import UsageError
from moekit.core.messages import Message

T = TypeVar("T")


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    running.forget()
    return running


def config(server: FaultServer, folder: Path, **changes: Any) -> AgentsConfig:
    given = {
        "endpoints": {"e": {"url": server.url}},
        "members": {"a": {"endpoint": "e", "model": "a", "max_tokens": 20}},
        "cache": {"folder": folder},
    }
    return AgentsConfig.model_validate(given | changes)


def with_engine(config: AgentsConfig, use: Callable[[Engine], Awaitable[T]]) -> T:
    async def main() -> T:
        async with Engine(config) as engine:
            return await use(engine)

    return asyncio.run(main())


def test_it_is_called_once_and_said_to_all(server: FaultServer, tmp_path: Path) -> None:
    server.behave("a", Ok(lambda _: f"Number {random.random()}.", delay=0.1))
    heard: list[list[str]] = [[], [], []]

    def hear(place: int) -> Callable[[str], Awaitable[None]]:
        async def on_text(piece: str) -> None:
            heard[place].append(piece)

        return on_text

    async def ask(engine: Engine) -> list[Answer]:
        return await asyncio.gather(*(engine.answer(QUESTION, on_text=hear(place)) for place in range(3)))

    cold = with_engine(config(server, tmp_path), ask)
    assert len({answer.text for answer in cold}) == len(server.requests) == 1
    assert ["".join(pieces) for pieces in heard] == [cold[0].text] * 3
    assert sorted(call.cached for answer in cold for call in answer.trace.calls) == [False, True, True]
    read, written = server.usage()
    assert sum(answer.usage.total_tokens for answer in cold) == read + written
    replay = config(server, tmp_path, cache={"folder": tmp_path, "mode": "only"})
    assert with_engine(replay, lambda engine: engine.answer(QUESTION)).text == cold[0].text


def test_other_questions_do_not_wait(server: FaultServer, tmp_path: Path) -> None:
    server.behave("a", Ok("x", delay=0.1))

    async def ask(engine: Engine) -> None:
        await asyncio.gather(*(engine.answer([Message(role="user", content=f"{n}?")]) for n in range(3)))

    with_engine(config(server, tmp_path), ask)
    assert server.most_at_once() == 3


def test_where_the_first_fails_the_next_one_calls(server: FaultServer, tmp_path: Path) -> None:
    server.behave("a", Fail(400), Ok("Paris."))

    async def ask(engine: Engine) -> list[Any]:
        return await asyncio.gather(*(engine.answer(QUESTION) for _ in range(3)), return_exceptions=True)

    found = with_engine(config(server, tmp_path), ask)
    assert len(server.requests) == 2
    assert sorted(str(each) if isinstance(each, AnswerFailed) else each.text for each in found) == [
        "Paris.",
        "Paris.",
        "a: its server answered with status 400: told to fail.",
    ]


def test_where_the_first_is_cancelled_the_next_one_calls(server: FaultServer, tmp_path: Path) -> None:
    server.behave("a", Hang(), Ok("Paris."))

    async def ask(engine: Engine) -> str:
        first = asyncio.create_task(engine.answer(QUESTION))
        while not server.requests:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(engine.answer(QUESTION))
        await asyncio.sleep(0.05)
        assert len(server.requests) == 1
        first.cancel()
        return (await second).text

    assert with_engine(config(server, tmp_path), ask) == "Paris."


def test_who_waits_for_the_same_keeps_its_own_deadline(tmp_path: Path) -> None:
    async def main() -> None:
        cache = Cache(CacheConfig(folder=tmp_path))
        trace = TraceRecorder("test", now)
        member = FakeMember("a", after(0.5))
        calls = MemberCalls(config_of("a"), {"a": Seat(member)}, cache, Ledger(BudgetConfig()), trace)

        async def ask(seconds: float) -> str:
            place = Place(name="a", stage="s", samples=(0,), deadline=now() + seconds, silence_s=60)
            return (await calls.chat(place, QUESTION, OPTIONS, None)).text

        first = asyncio.create_task(ask(20))
        await asyncio.sleep(0)
        with pytest.raises(MemberError, match=r"^a did not answer within 0\.1 s; the same had been asked") as found:
            await ask(0.1)
        assert found.value.reason == "timeout"
        assert not first.done()
        assert await first == "Light scatters."
        assert len(member.began) == 1
        await cache.close()

    asyncio.run(main())


def test_an_answer_that_cannot_be_kept_is_an_answer(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.behave("a", Ok("Paris."))

    def refuse(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    async def ask(engine: Engine) -> str:
        monkeypatch.setattr("moekit.agents.calls.answer_cache.write_text", refuse)
        return (await engine.answer(QUESTION)).text

    assert with_engine(config(server, tmp_path), ask) == "Paris."
    (text,) = (record.getMessage() for record in caplog.records if record.name.startswith("moekit."))
    assert text.endswith(".json: No space left on device.")


def test_a_cache_that_cannot_be_written_is_found_before_any_call(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^cache\.folder: nothing can be kept in \S+/file: File exists\."):
        with_engine(config(server, tmp_path / "file"), lambda engine: engine.answer(QUESTION))
    assert server.requests == []
