"""The HTTP server, with models that answer as they are told, over real connections and OpenAI's own client."""

import asyncio
import http.client
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from tests.serve.served import FAILED, Scripted, Served, served

from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message
from moekit.serve import PromptTooLong
from moekit.serve.run import bind, hosts_of, is_loopback

ASK: dict[str, Any] = {"model": "good", "messages": [{"role": "user", "content": "Capital of France?"}]}


@pytest.fixture(scope="module")
def models() -> dict[str, Scripted]:
    return {
        "good": Scripted(extra={"cost": 0.5}),
        "short": Scripted(pieces=("Pa",), finish_reason="length"),
        "silent": Scripted(pieces=()),
        "failing": Scripted(pieces=(), error=FAILED),
        "breaking": Scripted(error=FAILED),
        "buggy": Scripted(pieces=(), error=KeyError("sk-secret")),
        "breaking-buggy": Scripted(error=KeyError("sk-secret")),
        "too-long": Scripted(pieces=(), error=UsageError("The question is longer than the context.")),
        "over/context": Scripted(pieces=(), error=PromptTooLong("More than the context of 96.")),
        "hanging": Scripted(hang=0),
        "stalling": Scripted(hang=1),
    }


@pytest.fixture(scope="module")
def server(models: dict[str, Scripted]) -> Iterator[Served]:
    with served(**models) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none") as made:
        yield made


class Log(logging.Handler):
    """What a server logs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def log() -> Iterator[Log]:
    logger, handler = logging.getLogger("uvicorn.error"), Log()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def post(server: Served, body: Any, *, content_type: str = "application/json", **headers: str) -> tuple[int, Any]:
    """Status and JSON of the response; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/v1/chat/completions", data, {"Content-Type": content_type, **headers})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def events(server: Served, body: dict[str, Any]) -> list[Any]:
    """The events of a stream as they came."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body | {"stream": True}), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    blocks = response.read().decode().split("\n\n")
    connection.close()
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [data if data == "[DONE]" else json.loads(data) for data in (block[6:] for block in blocks)]


def test_a_whole_answer(client: openai.OpenAI, models: dict[str, Scripted]) -> None:
    answer = client.chat.completions.create(**ASK)
    assert answer.object == "chat.completion"
    assert answer.model == "good"
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", "Paris.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (1, 2, 3)
    assert answer.model_extra == {"moekit": {"cost": 0.5}}
    assert client.chat.completions.create(**ASK | {"model": "short"}).choices[0].finish_reason == "length"


def test_a_streamed_answer(client: openai.OpenAI) -> None:
    stream = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in stream[:-1]]
    assert [delta.content for delta in deltas] == ["Par", "is.", None]
    assert [delta.role for delta in deltas] == ["assistant", None, None]
    assert [chunk.choices[0].finish_reason for chunk in stream[:-1]] == [None, None, "stop"]
    assert stream[-2].model_extra == {"moekit": {"cost": 0.5}}
    assert stream[-1].choices == []
    assert stream[-1].usage is not None
    assert stream[-1].usage.total_tokens == 3
    assert len({chunk.id for chunk in stream}) == 1
    assert len(list(client.chat.completions.create(**ASK, stream=True))) == len(stream) - 1
    silent = list(client.chat.completions.create(**ASK | {"model": "silent"}, stream=True))
    assert [chunk.choices[0].delta.content for chunk in silent] == ["", None]


def test_objects_hold_the_keys_of_the_protocol(server: Served) -> None:
    """Byte for byte but for what differs by request, since clients that are not OpenAI's read it, too."""
    same = {"id": None, "created": None, "model": "good"}
    _, whole = post(server, ASK)
    assert whole | {"id": None, "created": None} == same | {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "moekit": {"cost": 0.5},
    }
    for include_usage, usage in ((False, {}), (True, {"usage": None})):
        *chunks, done = events(server, ASK | {"stream_options": {"include_usage": include_usage}})
        assert done == "[DONE]"
        deltas = [{"role": "assistant", "content": "Par"}, {"content": "is."}, {}]
        expected = [
            same
            | {"object": "chat.completion.chunk"}
            | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
            | usage
            for delta in deltas
        ]
        expected[-1]["choices"][0]["finish_reason"] = "stop"
        expected[-1]["moekit"] = {"cost": 0.5}
        if include_usage:
            told = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            expected.append(same | {"object": "chat.completion.chunk", "choices": [], "usage": told})
        assert [chunk | {"id": None, "created": None} for chunk in chunks] == expected


def test_the_asynchronous_client(server: Served) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            whole = await client.chat.completions.create(**ASK)
            pieces = [
                chunk.choices[0].delta.content or ""
                async for chunk in await client.chat.completions.create(**ASK, stream=True)
            ]
        return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == ("Paris.", "Paris.")


def test_everything_reaches_the_model(client: openai.OpenAI, models: dict[str, Scripted]) -> None:
    answer = client.chat.completions.create(
        model="good",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Capital "}, {"type": "text", "text": "of France?"}]},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "Well?"},
        ],
        temperature=0.25,
        top_p=0.5,
        max_completion_tokens=7,
        stop=["\n", "END"],
        seed=3,
        user="somebody",
        n=1,
        presence_penalty=0.0,
        response_format={"type": "text"},
    )
    assert models["good"].asked[-1] == (
        [
            Message(role="system", content="Be brief."),
            Message(role="user", content="Capital of France?"),
            Message(role="assistant", content=""),
            Message(role="user", content="Well?"),
        ],
        ChatOptions(temperature=0.25, top_p=0.5, max_tokens=7, stop=("\n", "END"), seed=3),
    )
    # What a client got it may send back.
    again = [*ASK["messages"], answer.choices[0].message.model_dump() | {"annotations": []}, *ASK["messages"]]
    assert client.chat.completions.create(model="good", messages=again, max_tokens=1, stop="x")
    assert models["good"].asked[-1][0][1] == Message(role="assistant", content="Paris.")
    assert models["good"].asked[-1][1] == ChatOptions(max_tokens=1, stop=("x",))


def test_models_and_health(server: Served, client: openai.OpenAI, models: dict[str, Scripted]) -> None:
    assert [model.id for model in client.models.list()] == list(models)
    for name in ("good", "over/context"):
        found = client.models.retrieve(name)
        assert (found.id, found.object, found.owned_by) == (name, "model", "moekit")
    with pytest.raises(openai.NotFoundError, match=r"no model 'god': did you mean 'good'\?") as caught:
        client.models.retrieve("god")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    connection.request("GET", "/v1/models")
    listed = json.loads(connection.getresponse().read())
    assert listed["object"] == "list"
    assert listed["data"][0] == {"id": "good", "object": "model", "created": 0, "owned_by": "moekit"}
    connection.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "The request: model: this key is missing"),
        (ASK | {"messages": []}, "messages: must be a list of 1 or more, not []"),
        ({"model": "good"}, "messages: this key is missing"),
        (ASK | {"messages": "hi"}, "messages: must be a list"),
        (ASK | {"messages": [{"role": "user"}]}, "messages[0].content: this key is missing"),
        (ASK | {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: there is no role 'tool'; valid"),
        (ASK | {"messages": [{"role": "user", "content": 5}]}, "messages[0].content: expected a text"),
        (
            ASK | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content: only parts of type 'text' can be read here, not 'image_url'",
        ),
        (ASK | {"messages": [{"role": "user", "content": "\ud800"}]}, "character 0 is half of a surrogate pair"),
        (ASK | {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "there is no such key"),
        (ASK | {"n": 2}, "The request: n is not supported here, other than 1."),
        (ASK | {"tools": [{"type": "function"}]}, "tools is not supported here, other than []"),
        (ASK | {"response_format": {"type": "json_object"}}, "response_format is not supported here"),
        (ASK | {"logprobs": True}, "logprobs is not supported here, other than false"),
        (ASK | {"temperatur": 1}, "temperatur: there is no such key; did you mean 'temperature'?"),
        (ASK | {"temperature": 3}, "temperature: must be 2 or less"),
        (ASK | {"temperature": "1"}, "temperature: must be a number"),
        (ASK | {"max_tokens": 0}, "max_tokens: must be 1 or more"),
        (ASK | {"stop": ["a"] * 5}, "stop: must be a list of at most 4"),
        (ASK | {"stream": "yes"}, "stream: must be true or false"),
        ([1], "The request is not a JSON object."),
        (b"{", "The request is not valid JSON: Expecting property name"),
        (b"\xff", "The request is not valid JSON: "),
        (b"[" * 10_000, "The request is not valid JSON: "),
        (ASK | {"model": "too-long"}, "The question is longer than the context."),
        (ASK | {"model": "too-long", "stream": True}, "The question is longer than the context."),
    ],
)
def test_bad_requests(server: Served, body: Any, said: str) -> None:
    status, answer = post(server, body)
    assert status == 400
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert said in answer["error"]["message"]


def test_requests_of_the_wrong_kind(server: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"no model 'god': did you mean 'good'\?") as caught:
        client.chat.completions.create(**ASK | {"model": "god"})
    assert caught.value.code == "model_not_found"
    status, answer = post(server, ASK | {"messages": [{"role": "user", "content": "x" * 20_000}]})
    assert (status, answer["error"]["message"]) == (
        413,
        "The request is larger than the 20000 bytes that are read here.",
    )
    # A page in a browser can send this type to any address without asking.
    status, answer = post(server, ASK, content_type="text/plain")
    assert (status, answer["error"]["message"]) == (415, "The request's Content-Type must be application/json.")
    assert post(server, ASK, content_type="Application/JSON; charset=utf-8")[0] == 200
    # And it can call this machine by a name of its own.
    for host, expected in (("localhost:80", 200), ("[::1]", 200), ("evil.example:8000", 421), ("127.0.0.1.evil", 421)):
        assert post(server, ASK, Host=host)[0] == expected, host
    with pytest.raises(openai.NotFoundError, match="There is no POST /v1/embeddings here"):
        client.embeddings.create(model="good", input="x")
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request("GET", "/v1/chat/completions")
    response = connection.getresponse()
    assert (response.status, "error" in json.loads(response.read())) == (405, True)
    connection.close()


def test_failures_have_a_status_and_no_client_tries_again(client: openai.OpenAI, models: dict[str, Scripted]) -> None:
    for stream in (False, True):
        before = len(models["failing"].asked)
        with pytest.raises(openai.InternalServerError, match=r"Two of three members failed: a \(timeout\)"):
            client.chat.completions.create(**ASK | {"model": "failing"}, stream=stream)
        assert len(models["failing"].asked) == before + 1
        with pytest.raises(openai.InternalServerError, match="in a way that nobody foresaw") as caught:
            client.chat.completions.create(**ASK | {"model": "buggy"}, stream=stream)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_has_the_code_that_programs_know(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"More than the context of 96\.") as caught:
        client.chat.completions.create(**ASK | {"model": "over/context"}, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_an_error_within_a_stream_is_an_event(server: Served, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**ASK | {"model": "breaking"}, stream=True)
    with pytest.raises(openai.APIError, match="Two of three members failed"):
        list(stream)
    *pieces, last = events(server, ASK | {"model": "breaking"})
    assert last["error"]["type"] == "server_error"
    assert last["error"]["message"] == str(FAILED)
    assert [piece["choices"][0]["delta"]["content"] for piece in pieces] == ["Par", "is."]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, None]
    assert "nobody foresaw" in events(server, ASK | {"model": "breaking-buggy"})[-1]["error"]["message"]
    assert events(server, ASK)[-1] == "[DONE]"


@pytest.mark.parametrize(("name", "stream"), [("hanging", False), ("hanging", True), ("stalling", True)])
def test_who_goes_away_cancels_the_answer(
    server: Served, models: dict[str, Scripted], name: str, stream: bool, log: Log
) -> None:
    model = models[name]
    model.started.clear()
    model.cancelled.clear()
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    body = json.dumps(ASK | {"model": name, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert model.started.wait(10)
    if name == "stalling":
        connection.getresponse().readline()
    assert not model.cancelled.is_set()
    connection.close()
    assert model.cancelled.wait(10)
    assert post(server, ASK)[0] == 200
    assert log.records == []


def test_who_goes_away_in_the_middle_of_a_request(server: Served, client: openai.OpenAI) -> None:
    host, _, port = urlsplit(server.url).netloc.partition(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
    assert client.chat.completions.create(**ASK).choices[0].message.content == "Paris."


def test_where_it_listens() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"Cannot listen on port {port} of 127.0.0.1: Address already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"Cannot listen on no\.such\.host\.invalid: "):
        bind("no.such.host.invalid", 0)
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")
    assert hosts_of("0.0.0.0") is None
    assert hosts_of("127.0.0.2") == {"127.0.0.1", "127.0.0.2", "::1", "localhost"}
