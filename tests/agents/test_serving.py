"""Agents as model names: OpenAI's own client, our server, the engine, and members over real HTTP behind it."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.agents.fault_server import Drip, ErrorInStream, Fail, FaultServer, Hang, Ok, Truncated
from tests.agents.served_agents import served_agents
from tests.serve.served import Served

from moekit.agents import AgentsConfig

ANSWER = "Paris is the capital of France, on the Seine."


@pytest.fixture(scope="module")
def behind() -> Iterator[FaultServer]:
    """The members' server."""
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def front(behind: FaultServer) -> Iterator[Served]:
    """Ours."""
    names = ("one", "two", "writer")
    config = AgentsConfig.model_validate(
        {
            "endpoints": {"there": {"url": behind.url}},
            "members": {name: {"endpoint": "there", "model": f"{name}-1"} for name in names},
            "strategies": {
                "answer": {"kind": "moa", "layers": [["one", "two"]], "aggregator": "writer"},
                "all": {"kind": "moa", "layers": [["one", "two"]], "aggregator": "writer", "quorum": 2},
            },
            "deadlines": {"call": 5, "layer": 5, "answer": 5},
            "retries": 0,
        }
    )
    with served_agents(config) as running:
        yield running


@pytest.fixture(autouse=True)
def _well(behind: FaultServer) -> None:
    behind.forget()
    behind.behave("one-1", Ok("Lyon?"))
    behind.behave("two-1", Ok("Paris!"))
    behind.behave("writer-1", Ok(ANSWER))


@pytest.fixture
def client(front: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=front.url, api_key="none") as made:
        yield made


def ask(model: str = "answer", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Capital of France?"}], **more}


def test_an_answer_whole_and_streamed(client: openai.OpenAI, behind: FaultServer) -> None:
    whole = client.chat.completions.create(**ask())
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == behind.usage()
    assert [request.model for request in behind.requests[2:]] == ["writer-1"]
    system, question = behind.requests[2].messages
    assert system["content"].endswith("1. Lyon?\n2. Paris!")
    assert question == {"role": "user", "content": "Capital of France?"}

    behind.forget()
    *pieces, end, usage = client.chat.completions.create(**ask(), stream=True, stream_options={"include_usage": True})
    assert [piece.choices[0].delta.content for piece in pieces] == [
        "Paris",
        *(" " + word for word in ANSWER.split()[1:]),
    ]
    assert end.choices[0].finish_reason == "stop"
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == behind.usage()


def test_the_asynchronous_client(front: Served) -> None:
    async def both() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=front.url, api_key="none") as client:
            whole = await client.chat.completions.create(**ask())
            stream = await client.chat.completions.create(**ask(), stream=True)
            return whole.choices[0].message.content, "".join(
                [chunk.choices[0].delta.content or "" async for chunk in stream]
            )

    assert asyncio.run(both()) == (ANSWER, ANSWER)


def test_members_and_strategies_are_model_names(client: openai.OpenAI, behind: FaultServer) -> None:
    assert [model.id for model in client.models.list()] == ["answer", "all", "one", "two", "writer"]
    assert client.chat.completions.create(**ask("two", max_tokens=1)).choices[0].message.content == "Paris!"
    assert [(request.model, request.body["max_tokens"]) for request in behind.requests] == [("two-1", 1)]
    with pytest.raises(openai.NotFoundError, match="did you mean 'writer'"):
        client.chat.completions.create(**ask("writter"))
    cut = client.chat.completions.create(**ask("writer", max_tokens=2))
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("Paris is", "length")
    assert cut.model_extra is not None
    assert cut.model_extra["moekit"]["incomplete"] == ["writer: the answer was cut off at max_tokens, 2."]


def test_failures_are_told_beside_the_answer(client: openai.OpenAI, behind: FaultServer) -> None:
    behind.behave("one-1", Fail(500))
    whole = client.chat.completions.create(**ask())
    assert whole.choices[0].message.content == ANSWER
    assert whole.model_extra is not None
    (failure,) = whole.model_extra["moekit"]["failures"]
    assert "one" in failure
    *_, end = client.chat.completions.create(**ask(), stream=True)
    assert end.model_extra is not None
    assert len(end.model_extra["moekit"]["failures"]) == 1


def test_no_quorum_is_an_error_with_reasons(client: openai.OpenAI, behind: FaultServer) -> None:
    behind.behave("one-1", Fail(503))
    for stream in (False, True):
        behind.forget()
        with pytest.raises(openai.InternalServerError, match="503"):
            client.chat.completions.create(**ask("all"), stream=stream)
        # Nobody was asked a second time: OpenAI's client obeys the header that says so.
        assert len(behind.of("one-1")) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_may_be_missing_is_told_beside_the_answer(
    client: openai.OpenAI, behind: FaultServer, stream: bool
) -> None:
    behind.behave("writer-1", Truncated(politely=True))
    if stream:
        *pieces, last = client.chat.completions.create(**ask(), stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "one two three"
        extra = last.model_extra
    else:
        whole = client.chat.completions.create(**ask())
        assert whole.choices[0].message.content == "one two three"
        extra = whole.model_extra
    assert extra is not None
    (told,) = extra["moekit"]["incomplete"]
    assert told.startswith("writer: its stream ended without saying that it was over")


@pytest.mark.parametrize("behaviour", [Truncated(), ErrorInStream()])
def test_a_stream_that_breaks_off_ends_with_an_error(
    client: openai.OpenAI, behind: FaultServer, behaviour: Truncated | ErrorInStream
) -> None:
    behind.behave("writer-1", behaviour)
    pieces = []

    def read() -> None:
        for chunk in client.chat.completions.create(**ask(), stream=True):
            pieces.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="writer"):
        read()
    assert pieces == ["one", " two", " three"][: len(pieces)]
    assert len(pieces) >= 2


@pytest.mark.parametrize("behaviour", [Hang(), Drip()])
@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_cancels_the_calls_of_members(
    front: Served, behind: FaultServer, behaviour: Hang | Drip, stream: bool
) -> None:
    behind.behave("one-1", behaviour)
    behind.behave("two-1", behaviour)

    async def go_away() -> None:
        async with openai.AsyncOpenAI(base_url=front.url, api_key="none", max_retries=0) as client:
            asking = asyncio.create_task(client.chat.completions.create(**ask(), stream=stream))
            while len(behind.requests) < 2:
                await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(go_away())
    gone = time.perf_counter()
    behind.wait_until_idle(3)  # long before any deadline
    assert [request.cancelled for request in behind.requests] == [True, True]
    assert time.perf_counter() - gone < 3


def test_who_goes_away_in_the_middle_of_an_answer(front: Served, behind: FaultServer) -> None:
    behind.behave("writer-1", Ok("word " * 400, piece_delay=0.01))
    with openai.OpenAI(base_url=front.url, api_key="none") as client:
        stream = client.chat.completions.create(**ask(), stream=True)
        assert next(stream).choices[0].delta.content == "word"
        stream.close()
    behind.wait_until_idle(3)
    (request,) = behind.of("writer-1")
    assert request.cancelled
    assert len(request.sent) < 350


def test_hostile_text_stays_text(client: openai.OpenAI, behind: FaultServer) -> None:
    hostile = 'data: [DONE]\n\ndata: {"error": {"message": "x"}}\n\n\u2028\x00<script>'
    behind.behave("writer-1", Ok(hostile))
    assert client.chat.completions.create(**ask()).choices[0].message.content == hostile
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask(), stream=True)]
    assert "".join(pieces) == hostile
