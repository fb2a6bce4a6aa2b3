"""Servers that refuse a key of a request: they are asked without it, once and for all, and nothing is paid twice."""

import asyncio
import json
from typing import Any

import pytest
from tests.agents.fault_server import Behaviour, FaultServer, Ok
from tests.agents.in_memory import QUESTION

from moekit.agents import AgentsConfig, AnswerFailed, Engine

NAMED = {"error": {"message": "no", "param": "stream_options", "code": None}}


class Refuses(Behaviour):
    """A request with any of these keys, in the words of one kind of server."""

    def __init__(self, status: int, body: Any, *keys: str) -> None:
        self.status, self.body, self.keys = status, body, keys

    async def answer(self, request: Any, connection: Any) -> None:
        if any(key in request.body for key in self.keys):
            request.prompt_tokens = 0
            await connection.whole(self.status, json.dumps(self.body).encode(), "application/json")
        else:
            await Ok().answer(request, connection)


def error(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


REFUSALS: dict[str, tuple[Refuses, int]] = {
    # and how many requests it takes
    "by param": (Refuses(400, error("Unknown", "stream_options"), "stream_options"), 2),
    "by a part of the param": (Refuses(400, error("Unknown", "stream_options.include_usage"), "stream_options"), 2),
    "in a sentence": (
        Refuses(400, error("Unrecognized request argument supplied: stream_options"), "stream_options"),
        2,
    ),
    "as FastAPI says it": (
        Refuses(422, {"detail": [{"loc": ["body", "stream_options"], "msg": "extra"}]}, "stream_options"),
        2,
    ),
    "streams": (Refuses(400, error("Unsupported value", "stream"), "stream"), 2),
    "streams, in a sentence": (Refuses(400, error("Streaming is not supported."), "stream"), 2),
    "both, one after the other": (Refuses(400, error("stream_options, stream: no"), "stream", "stream_options"), 3),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_key_is_left_out_from_then_on(name: str) -> None:
    refuses, requests = REFUSALS[name]

    async def main(server: FaultServer) -> None:
        server.behave("m", refuses)
        given = {"endpoints": {"e": {"url": server.url}}, "members": {"a": {"endpoint": "e", "model": "m"}}}
        async with Engine(AgentsConfig.model_validate(given | {"retries": 0})) as engine:
            answer = await engine.answer(QUESTION)
            assert (answer.text, answer.failures) == ("Paris.", ())
            assert len(server.requests) == requests
            assert (await engine.answer(QUESTION)).text == "Paris."
            assert len(server.requests) == requests + 1

    with FaultServer() as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("message", ["max_tokens is too large", "an upstream server", "no such model"])
def test_other_refusals_are_told(message: str) -> None:
    async def main(server: FaultServer) -> None:
        server.behave("m", Refuses(400, error(message), "messages"))
        given = {"endpoints": {"e": {"url": server.url}}, "members": {"a": {"endpoint": "e", "model": "m"}}}
        async with Engine(AgentsConfig.model_validate(given)) as engine:
            with pytest.raises(AnswerFailed, match=message):
                await engine.answer(QUESTION)
        assert len(server.requests) == 1

    with FaultServer() as server:
        asyncio.run(main(server))
