"""Models that know the limit of an answer by its newer name alone: found out once, for all calls under way."""

import asyncio
import json
from typing import Any

import pytest
from tests.agents.fault_server import Behaviour, FaultServer, Ok
from tests.agents.in_memory import QUESTION

from moekit.agents import AgentsConfig, Answer, Engine
from moekit.agents.config.agents_config import EndpointConfig, EndpointMemberConfig
from moekit.agents.members.endpoint import Endpoint, EndpointMember
from moekit.agents.members.member import MemberError
from moekit.core.messages import ChatOptions, Message, Usage

OPTIONS = ChatOptions(max_tokens=50)


class Refuses(Behaviour):
    """With status 400, because of max_tokens; once all that were sent together are here."""

    async def answer(self, request: Any, connection: Any) -> None:
        request.prompt_tokens = 0
        await asyncio.sleep(0.05)
        error = {"message": "no such limit", "param": "max_tokens", "code": "unsupported_parameter"}
        await connection.whole(400, json.dumps({"error": error}).encode(), "application/json")


class TakesTheNewerName(Refuses):
    async def answer(self, request: Any, connection: Any) -> None:
        if "max_tokens" in request.body:
            await super().answer(request, connection)
        else:
            assert request.body["max_completion_tokens"] == 1024
            await Ok().answer(request, connection)


@pytest.mark.parametrize(("a_minute", "answers"), [(6, 3), (5, 2)])
@pytest.mark.parametrize("stream", [False, True])
def test_all_calls_under_way_are_sent_anew(stream: bool, a_minute: int, answers: int) -> None:
    """Without retries; and what is sent anew waits for the limits like every request."""

    async def hear(piece: str) -> None:
        return

    async def main(server: FaultServer) -> None:
        server.behave("m", TakesTheNewerName())
        given = {
            "endpoints": {"e": {"url": server.url, "requests_per_minute": a_minute}},
            "members": {"a": {"endpoint": "e", "model": "m", "max_tokens": 1024}},
            "deadlines": {"call": 1.0},
            "retries": 0,
        }
        async with Engine(AgentsConfig.model_validate(given)) as engine:
            questions = [[Message(role="user", content=f"{number}?")] for number in range(3)]
            on_text = hear if stream else None
            found = await asyncio.gather(
                *(engine.answer(question, on_text=on_text) for question in questions), return_exceptions=True
            )
        answered = [each for each in found if isinstance(each, Answer)]
        assert [answer.text for answer in answered] == ["Paris."] * answers
        assert {call.attempts for answer in answered for call in answer.trace.calls} == {2}
        assert all("a: its server takes no max_tokens." in str(each) for each in found if each not in answered)
        assert len(server.requests) == a_minute

    with FaultServer() as server:
        asyncio.run(main(server))


def test_a_model_that_knows_neither_name_is_not_asked_for_ever() -> None:
    async def main(server: FaultServer) -> None:
        server.behave("m", Refuses())
        endpoint = Endpoint("e", EndpointConfig(url=server.url), None)
        member = EndpointMember("a", EndpointMemberConfig(endpoint="e", model="m"), endpoint)
        with pytest.raises(MemberError, match=r"^a: its server takes no max_tokens\.$") as found:
            await member.complete(QUESTION, OPTIONS)
        assert (found.value.retryable, found.value.reworded, found.value.usage) == (True, True, Usage())
        with pytest.raises(MemberError, match="status 400: no such limit") as found:
            await member.complete(QUESTION, OPTIONS)
        assert (found.value.retryable, found.value.reworded) == (False, False)
        await endpoint.close()

    with FaultServer() as server:
        asyncio.run(main(server))
