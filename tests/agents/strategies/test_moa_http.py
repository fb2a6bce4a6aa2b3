"""The published algorithm once more, as the members' server saw it: messages, temperature, layers."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from tests.agents.fake_session import CONVERSATIONS
from tests.agents.fault_server import Fail, FaultServer, Ok

from moekit.agents import AgentsConfig, Engine
from moekit.agents.outcome.answer import Answer
from moekit.agents.strategies.member_prompts import SYNTHESIZE
from moekit.core.messages import ChatOptions, Message

NAMES = ("a", "b", "c", "d")
LAYERS = (("a", "b", "c"), ("b", "d"), ("a", "c", "d"))


def answer_to(model: str, messages: Sequence[dict[str, str]]) -> str:
    """What the server's models say: another thing to every request."""
    return f"{model} {hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:8]}"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _well(server: FaultServer) -> None:
    server.forget()
    for name in NAMES:
        server.behave(name, Ok(lambda body: answer_to(body["model"], body["messages"])))


def config(server: FaultServer, layers: Sequence[Sequence[str]], **members: Any) -> AgentsConfig:
    return AgentsConfig.model_validate(
        {
            "endpoints": {"there": {"url": server.url}},
            "members": {name: {"endpoint": "there", "model": name, **members} for name in NAMES},
            "strategies": {"moa": {"kind": "moa", "layers": layers, "aggregator": "d"}},
            "retries": 0,
        }
    )


def ask(config: AgentsConfig, messages: Sequence[Message], options: ChatOptions | None = None) -> Answer:
    async def answer() -> Answer:
        async with Engine(config) as engine:
            return await engine.answer(messages, options=options)

    return asyncio.run(answer())


def published(
    layers: Sequence[Sequence[str]], messages: Sequence[Message]
) -> tuple[list[Counter[tuple[str, str]]], str]:
    """For each layer who is sent what (in any order), and the answer."""
    expected = []
    answers: list[str] = []
    for names in [*layers, ["d"]]:
        sent = [asdict(message) for message in messages]
        if answers:
            added = SYNTHESIZE + "".join("\n" + str(place + 1) + ". " + text for place, text in enumerate(answers))
            if sent[0]["role"] == "system":
                sent[0]["content"] += "\n\n" + added
            else:
                sent = [{"role": "system", "content": added}, *sent]
        expected.append(Counter((name, json.dumps(sent)) for name in names))
        answers = [answer_to(name, sent) for name in names]
    return expected, answers[0]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_requests_are_those_of_the_published_algorithm(server: FaultServer, depth: int) -> None:
    async def all_of_them() -> None:
        async with Engine(config(server, LAYERS[:depth])) as engine:
            for messages in CONVERSATIONS.values():
                server.forget()
                answer = await engine.answer(messages)
                check(server, answer.text, *published(LAYERS[:depth], messages))

    asyncio.run(all_of_them())


def check(server: FaultServer, text: str, expected: Sequence[Counter[tuple[str, str]]], expected_text: str) -> None:
    assert text == expected_text
    requests = iter(server.requests)
    for layer in expected:
        arrived = [next(requests) for _ in range(layer.total())]
        assert Counter((request.model, json.dumps(request.messages)) for request in arrived) == layer
    assert next(requests, None) is None
    assert {request.body["temperature"] for request in server.requests} == {0.7}


def test_the_trace_tells_each_request_with_its_stage(server: FaultServer) -> None:
    server.behave("b", Fail(400, message="no"))
    answer = ask(config(server, LAYERS[:2]), CONVERSATIONS["one question"])
    told = [(call.stage, call.name, call.failure is None) for call in answer.trace.calls]
    assert sorted(told) == [
        ("aggregator", "d", True),
        ("layer 1", "a", True),
        ("layer 1", "b", False),
        ("layer 1", "c", True),
        ("layer 2", "b", False),
        ("layer 2", "d", True),
    ]
    assert len(answer.failures) == 2
    for request in server.requests:
        prompts = {call.prompt for call in answer.trace.calls if call.name == request.model}
        sent = [Message(role=one["role"], content=one["content"]) for one in request.messages]
        assert tuple(sent) in {answer.trace.prompts[prompt] for prompt in prompts}


def test_the_users_temperature_holds_in_all_layers(server: FaultServer) -> None:
    ask(config(server, LAYERS), CONVERSATIONS["one question"], ChatOptions(temperature=0.2))
    assert {request.body["temperature"] for request in server.requests} == {0.2}


def test_long_answers_are_cut_for_a_small_context_and_the_trace_says_so(server: FaultServer) -> None:
    server.behave("a", Ok("word " * 500))
    question = CONVERSATIONS["several turns with a system message"]
    answer = ask(config(server, [["a", "b"]], context=2000, max_tokens=500), question)
    last = server.of("d")[-1].messages
    assert last[1:] == [asdict(message) for message in question[1:]]
    assert last[0]["content"].startswith(f"{question[0].content}\n\n{SYNTHESIZE}\n1. word word")
    assert last[0]["content"].endswith(f" […]\n2. {answer_to('b', server.of('b')[-1].messages)}")
    (note,) = [event.text for event in answer.trace.events if event.kind == "note"]
    assert note.startswith("d: Answers cut to ")
    assert note.endswith(" characters to fit the context: 1 (of 2,499).")
