"""How long an answer takes beside its members, and many conversations at once."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.agents.fault_server import Connection, FaultServer, Ok, Recorded
from tests.agents.served_agents import served_agents

from moekit.agents import AgentsConfig

PROPOSERS = ("one", "two")
CONVERSATIONS = 100


@asynccontextmanager
async def conversing(layers: int) -> AsyncIterator[tuple[FaultServer, openai.AsyncOpenAI]]:
    """The members' server, and a client of ours: all of it in one loop, so that threads do not fight over Python."""
    async with FaultServer() as behind:
        config = AgentsConfig.model_validate(
            {
                "endpoints": {"there": {"url": behind.url, "concurrency": 1000}},
                "members": {name: {"endpoint": "there", "model": name} for name in (*PROPOSERS, "writer")},
                "strategies": {"answer": {"kind": "moa", "layers": [PROPOSERS] * layers, "aggregator": "writer"}},
                "retries": 0,
            }
        )
        async with (
            served_agents(config) as front,
            openai.AsyncOpenAI(base_url=front.url, api_key="none", max_retries=0, timeout=60) as client,
        ):
            yield behind, client


def question(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


@pytest.mark.alone
def test_an_answer_takes_as_long_as_the_slowest_of_each_layer() -> None:
    """At most 1.1 times the sum of those, and the first piece is passed on within 50 ms."""
    pieces, every = 10, 0.03

    async def ask() -> tuple[float, list[float]]:
        async with conversing(layers=2) as (behind, client):
            for name, delay in zip(PROPOSERS, (0.2, 0.8), strict=True):
                behind.behave(name, Ok(delay=delay))
            behind.behave("writer", Ok("word " * (pieces - 1) + "word", delay=0.4, piece_delay=every))
            await client.chat.completions.create(model="answer", messages=question("Warm?"), max_tokens=1)
            behind.forget()
            begin = time.perf_counter()
            stream = await client.chat.completions.create(model="answer", messages=question("Well?"), stream=True)
            came = [time.perf_counter() async for chunk in stream if chunk.choices[0].delta.content]
            took = time.perf_counter() - begin
            (writer,) = behind.of("writer")
            return took, [arrived - left for arrived, left in zip(came, writer.sent, strict=True)]

    took, late = asyncio.run(ask())
    least = 0.8 + 0.8 + 0.4 + (pieces - 1) * every
    assert least <= took < 1.1 * least
    assert 0 < late[0] < 0.05
    # The other pieces do not wait for each other either.
    assert 0 < sorted(late)[pieces // 2] < 0.05


@dataclass(frozen=True)
class Echo(Ok):
    """Says its name and the question, after a wait that depends on both. padding: bytes more."""

    padding: int = 0

    async def answer(self, request: Recorded, connection: Connection) -> None:
        text = f"<{request.model}: {request.question}>"
        await asyncio.sleep(zlib.crc32(text.encode()) % 50 / 1000)
        await Ok(text + "x" * self.padding).answer(request, connection)


@dataclass(frozen=True)
class Repeat(Ok):
    """Says all that it was sent."""

    async def answer(self, request: Recorded, connection: Connection) -> None:
        await Ok("|".join(message["content"] for message in request.messages)).answer(request, connection)


async def converse(client: openai.AsyncOpenAI, number: int) -> None:
    """The second turn of a conversation; checks that every word of the answer belongs to it."""
    said = [f"system {number}.", f"question {number}", f"answer {number}", f"second question {number}"]
    roles = ("system", "user", "assistant", "user")
    messages: Any = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    if number % 2:
        stream = await client.chat.completions.create(model="answer", messages=messages, stream=True)
        answer = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    else:
        whole = await client.chat.completions.create(model="answer", messages=messages)
        answer = whole.choices[0].message.content or ""
    system, *conversation = answer.split("|")
    assert system.startswith(f"{said[0]}\n\n")
    assert system.endswith(f"1. <one: {said[-1]}>\n2. <two: {said[-1]}>")
    assert conversation == said[1:]


def test_a_hundred_conversations_at_once_do_not_mix() -> None:
    async def all_of_them() -> None:
        async with conversing(layers=1) as (behind, client):
            for name in PROPOSERS:
                behind.behave(name, Echo())
            behind.behave("writer", Repeat())
            await asyncio.gather(*(converse(client, number) for number in range(CONVERSATIONS)))
            assert len(behind.requests) == CONVERSATIONS * (len(PROPOSERS) + 1)

    asyncio.run(all_of_them())


@pytest.mark.alone
def test_memory_does_not_grow_with_conversations() -> None:
    """Rounds of conversations with 200 kB in every member's answer: all of it would stay if anything did."""
    rounds, at_once, padding = 10, 8, 200_000

    async def all_rounds() -> list[int]:
        resident = []
        async with conversing(layers=1) as (behind, client):
            for name in (*PROPOSERS, "writer"):
                behind.behave(name, Echo(padding=padding))
            for number in range(rounds):
                ask = client.chat.completions.create
                texts = [f"Question {number}.{place}?" for place in range(at_once)]
                await asyncio.gather(*(ask(model="answer", messages=question(text)) for text in texts))
                behind.forget()
                resident.append(psutil.Process().memory_info().rss)
        return resident

    resident = asyncio.run(all_rounds())
    # What is kept for good is taken in the first four rounds. If answers were kept, four more rounds of them would be
    # there even where the least is measured afterwards.
    answers = 4 * at_once * (len(PROPOSERS) + 1) * padding
    assert min(resident[7:]) - max(resident[:4]) < answers / 2, [size // 10**6 for size in resident]
