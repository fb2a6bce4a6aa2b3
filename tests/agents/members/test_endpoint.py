"""A model behind HTTP: what goes out, what is made of what comes back, and the key that stays here."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.fault_server import (
    HTML,
    NO_CHOICES,
    OTHER_SHAPE,
    Behaviour,
    Closed,
    ErrorInStream,
    Fail,
    FaultServer,
    Garbage,
    Ok,
    Truncated,
)
from tests.agents.in_memory import QUESTION

from moekit.agents.config.agents_config import EndpointConfig, EndpointMemberConfig
from moekit.agents.members.endpoint import Endpoint, EndpointMember
from moekit.agents.members.endpoint_failures import retry_after_s
from moekit.agents.members.member import MemberError
from moekit.agents.members.redaction import Redactor
from moekit.core.messages import ChatOptions, Message, Reply, Usage

KEY = "sk-secret-1234567890"
OPTIONS = ChatOptions(max_tokens=50)


class Client:
    """A server, a loop, and members with and without a key: making a client takes longer than all that it asks here."""

    def __init__(self, server: FaultServer, runner: asyncio.Runner) -> None:
        self.server, self._runner = server, runner
        self._endpoints: dict[tuple[str | None, str], Endpoint] = {}

    def ask(
        self,
        *behaviours: Behaviour,
        stream: bool = False,
        key: str | None = None,
        options: ChatOptions = OPTIONS,
        pieces: list[str] | None = None,
        url: str | None = None,
    ) -> Reply:
        """One request to a model that behaves so; the pieces of a stream go into `pieces`."""
        heard = [] if pieces is None else pieces
        self.server.forget()
        self.server.behave("m", *behaviours)

        async def hear(piece: str) -> None:
            heard.append(piece)

        async def main() -> Reply:
            member = self.member(key, url or self.server.url)
            async with asyncio.timeout(20):
                return await member.complete(QUESTION, options, hear if stream else None)

        return self._runner.run(main())

    def member(self, key: str | None, url: str) -> EndpointMember:
        if (key, url) not in self._endpoints:
            self._endpoints[key, url] = Endpoint("e", EndpointConfig(url=url), key)
        return EndpointMember("a", EndpointMemberConfig(endpoint="e", model="m"), self._endpoints[key, url])

    def close(self) -> None:
        """The clients; new ones are made where they are needed."""
        while self._endpoints:
            self._runner.run(self._endpoints.popitem()[1].close())


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with FaultServer() as server, asyncio.Runner() as runner:
        running = Client(server, runner)
        yield running
        running.close()


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_an_answer_arrives_whole(client: Client, stream: bool) -> None:
    pieces: list[str] = []
    found = client.ask(Ok("Grüße aus Paris. 🙂"), stream=stream, pieces=pieces)
    assert found.text == "Grüße aus Paris. 🙂"
    assert found.finish_reason == "stop"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == client.server.usage()
    assert list(filter(None, pieces)) == (["Grüße", " aus", " Paris.", " 🙂"] if stream else [])


@both
def test_only_what_was_said_goes_out(client: Client, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "not-for-this-server")
    client.close()
    client.ask(Ok(), stream=stream)
    (request,) = client.server.requests
    assert "not-for-this-server" not in json.dumps(request.headers)
    assert "authorization" not in request.headers
    told = {"model": "m", "messages": [{"role": "user", "content": QUESTION[0].content}], "max_tokens": 50}
    told |= {"stream": True, "stream_options": {"include_usage": True}}
    assert request.body == told
    client.ask(Ok(), options=ChatOptions(temperature=0.0, top_p=0.5, max_tokens=3, stop=("#",), seed=1), key=KEY)
    (request,) = client.server.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == told | {"temperature": 0.0, "top_p": 0.5, "max_tokens": 3, "stop": ["#"], "seed": 1}


@both
def test_an_answer_that_was_cut_off_says_so(client: Client, stream: bool) -> None:
    found = client.ask(Ok("one two three"), stream=stream, options=ChatOptions(max_tokens=2))
    assert (found.text, found.finish_reason) == ("one two", "length")


NONE = "a: what its server sent is no answer"
FAULTS: dict[str, tuple[Behaviour, str, bool, bool, str]] = {
    # behaviour, reason, retryable, whether it is known to have cost nothing, text
    "500": (Fail(500), "status", True, True, "a: its server answered with status 500: told to fail."),
    "400": (Fail(400), "refused", False, True, "a: its server answered with status 400: told to fail."),
    "401": (Fail(401), "status", False, True, "a: its server answered with status 401: told to fail."),
    "404": (Fail(404), "status", False, True, "a: its server answered with status 404: told to fail."),
    "408": (Fail(408), "status", True, True, "a: its server answered with status 408: told to fail."),
    "409": (Fail(409), "status", False, True, "a: its server answered with status 409: told to fail."),
    "429": (Fail(429), "status", True, True, "a: its server answered with status 429: told to fail."),
    "closed": (Closed(), "unreachable", True, False, "a: the connection broke before it answered."),
    "no JSON": (Garbage(), "garbage", False, False, "a: what its server sent is no answer: {not json."),
    "HTML": (
        HTML,
        "garbage",
        False,
        False,
        "a: its server sent a page of HTML and no answer (502 Bad Gateway); is its url right, up to /v1.",
    ),
    "other shape": (OTHER_SHAPE, "garbage", False, False, f"{NONE}: {OTHER_SHAPE.body.decode()}."),
    "no choices": (NO_CHOICES, "garbage", False, False, f"{NONE}: {NO_CHOICES.body.decode()}."),
    "a number": (Garbage(b"5"), "garbage", False, False, f"{NONE}: 5."),
    "nothing": (Garbage(b""), "garbage", False, False, "a: its server sent nothing."),
    "null": (Garbage(b"null"), "garbage", False, False, f"{NONE}: null."),
    "deep": (Garbage(b"[" * 100_000), "garbage", False, False, f"{NONE}: {'[' * 200}…."),
    "not text": (Garbage(b"\xff\xfe\xfd"), "garbage", False, False, f"{NONE}: \ufffd\ufffd\ufffd."),
    "empty": (Ok(""), "empty", False, False, "a gave an empty answer."),
    "blank": (Ok(" \n "), "empty", False, False, "a gave an empty answer."),
}


@pytest.mark.parametrize(("behaviour", "reason", "retryable", "free", "text"), FAULTS.values(), ids=FAULTS)
def test_every_fault_has_its_reason(
    behaviour: Behaviour, reason: str, retryable: bool, free: bool, text: str, client: Client
) -> None:
    with pytest.raises(MemberError) as found:
        client.ask(behaviour)
    error = found.value
    assert (str(error), error.reason, error.retryable) == (text, reason, retryable)
    assert (error.usage == Usage()) == free
    assert len(client.server.requests) == 1  # the client's own retries are off
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("body", [b"data: {not json\n\n", b"data: 5\n\n", b'data: {"choices": 5}\n\n', b"<html>"])
def test_a_stream_of_garbage_is_no_answer(body: bytes, client: Client) -> None:
    with pytest.raises(MemberError) as found:
        client.ask(Garbage(body, "text/event-stream"), stream=True)
    assert found.value.reason in ("garbage", "truncated")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Truncated(pieces=3), "truncated"),
        (Truncated(pieces=0, politely=True), "garbage"),
        (ErrorInStream(pieces=2), "status"),
        (ErrorInStream(pieces=0), "status"),
        (Fail(500), "status"),
        (Closed(), "unreachable"),
        (HTML, "garbage"),
        (Ok(""), "empty"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(behaviour: Behaviour, reason: str, client: Client) -> None:
    with pytest.raises(MemberError) as found:
        client.ask(behaviour, stream=True)
    assert found.value.reason == reason


CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi."}}


def completion(**changes: Any) -> Garbage:
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE]}
    return Garbage(json.dumps(body | changes).encode())


def choice(**changes: Any) -> Garbage:
    return completion(choices=[CHOICE | changes])


@pytest.mark.parametrize(
    "strange",
    [
        choice(message=None),
        choice(message={"content": 5}),
        completion(choices=[None]),
        completion(choices="stop"),
        completion(object=None, choices=[]),
    ],
)
def test_where_no_text_is_there_is_no_answer(strange: Garbage, client: Client) -> None:
    with pytest.raises(MemberError) as found:
        client.ask(strange)
    assert found.value.reason in ("garbage", "empty")
    assert not found.value.retryable


@pytest.mark.parametrize("reason", ["stop", None, "eos", "", "null", ["stop"], {"type": "stop"}])
def test_answers_may_end_for_reasons_of_their_own(reason: Any, client: Client) -> None:
    assert client.ask(choice(finish_reason=reason)) == Reply(text="Hi.", usage=Usage(), finish_reason="stop")


def test_what_cut_an_answer_off_is_told(client: Client) -> None:
    filtered = client.ask(choice(finish_reason="content_filter"))
    assert (filtered.text, filtered.finish_reason) == ("Hi.", "content_filter")
    assert filtered.incomplete == "a: a content filter of its server cut the answer off."
    limited = client.ask(choice(finish_reason="MAX_TOKENS"))
    assert (limited.finish_reason, limited.incomplete) == ("length", "a: the answer was cut off at max_tokens, 50.")
    usage = {"prompt_tokens": 4, "completion_tokens": 20}
    full = client.ask(completion(choices=[CHOICE | {"finish_reason": "length"}], usage=usage))
    assert full.incomplete == (
        "a: the answer was cut off after 20 tokens, where its context is full or its server has a limit."
    )
    unmarked = client.ask(Truncated(politely=True))
    assert (unmarked.text, unmarked.finish_reason) == ("one two three", "stop")
    assert unmarked.incomplete == ("a: its stream ended without saying that it was over; the answer may be incomplete.")


@pytest.mark.parametrize(
    ("message", "reason", "why"),
    [
        ({"content": None}, "length", ", cut off before its first word: max_tokens is too small"),
        ({"content": "", "reasoning": "hmm"}, "length", " after 3 characters of reasoning, cut off before its first"),
        ({"content": "", "reasoning_content": "hmm."}, "stop", " after 4 characters of reasoning."),
        ({"content": None, "tool_calls": [{"id": "x"}]}, "tool_calls", ": it calls a tool, and has none."),
        ({"content": ""}, "content_filter", ": a content filter of its server let nothing through."),
    ],
)
def test_an_empty_answer_says_why(message: dict[str, Any], reason: str, why: str, client: Client) -> None:
    with pytest.raises(MemberError, match=r"^a gave an empty answer") as found:
        client.ask(choice(finish_reason=reason, message=message))
    assert why in str(found.value)
    assert not found.value.retryable


@both
@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        "many",
        5,
        [],
        {},
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": "three", "completion_tokens": "4"},
    ],
)
def test_a_usage_that_is_none_counts_as_untold(nonsense: Any, client: Client, stream: bool) -> None:
    assert client.ask(Ok(usage=nonsense), stream=stream).usage == Usage()


def test_halves_of_characters_do_not_travel_on(client: Client) -> None:
    """JSON can hold them; files and other servers cannot."""
    found = client.ask(choice(message={"role": "assistant", "content": "a\ud800b\x00"}))
    assert found.text == "a?b\x00"


def test_a_redirect_is_not_followed(client: Client) -> None:
    """It would carry the conversation to where nobody sent it."""

    class Redirects(Behaviour):
        async def answer(self, request: Any, connection: Any) -> None:
            request.prompt_tokens = 0
            where = f"{client.server.url}/elsewhere"
            await connection.whole(307, b"{}", "application/json", ("Location", where))

    with pytest.raises(MemberError, match="status 307") as found:
        client.ask(Redirects(), Ok())
    assert not found.value.retryable
    assert len(client.server.requests) == 1


def test_a_server_that_is_not_there(client: Client) -> None:
    with pytest.raises(MemberError, match=r"^a: nothing answers at http://127\.0\.0\.1:9/v1\.$") as found:
        client.ask(Ok(), url="http://127.0.0.1:9/v1")
    assert (found.value.reason, found.value.retryable, found.value.usage) == ("unreachable", True, Usage())


# Retry-After


def test_retry_after_reaches_the_caller(client: Client) -> None:
    with pytest.raises(MemberError) as found:
        client.ask(Fail(429, retry_after="1.5"))
    assert found.value.retry_after_s == 1.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 59.0),
        ("Fri, 31 Dec 1999 23:59:59", 59.0),
        ("Fri, 31 Dec 1999 23:00:00 GMT", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, datetime(1999, 12, 31, 23, 59, 0, tzinfo=UTC)) == seconds


# The key


class EchoesKey(Behaviour):
    """Sends the key back wherever text can stand."""

    def __init__(self, status: int = 200) -> None:
        self.status = status

    async def answer(self, request: Any, connection: Any) -> None:
        key = request.headers["authorization"].removeprefix("Bearer ")
        header = ("X-Key", key)
        if self.status != 200:
            body = {"error": {"message": f"{'x' * 190} {key} is wrong", "code": key, "type": key, "param": key}}
            await connection.whole(self.status, json.dumps(body).encode(), "application/json", header)
        elif request.body.get("stream"):
            await connection.head(200, "text/event-stream", header, length=None)
            for piece in ("It is ", *key, key[:9], "no ", key[:5], "."):
                delta = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                await connection.event({"object": "chat.completion.chunk", "choices": [delta]})
            await connection.event({"object": "chat.completion.chunk", "choices": [delta | {"finish_reason": "stop"}]})
            await connection.chunk(b"")
        else:
            message = {"role": "assistant", "content": f"It is {key}{key[:9]}no {key[:5]}.."}
            body = {"object": "chat.completion", "choices": [{"message": message, "finish_reason": "stop"}]}
            await connection.whole(200, json.dumps(body).encode(), "application/json", header)


@both
def test_a_key_that_comes_back_goes_nowhere(client: Client, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pieces: list[str] = []
    found = client.ask(EchoesKey(), stream=stream, key=KEY, pieces=pieces)
    assert found.text == f"It is [key]{KEY[:9]}no {KEY[:5]}.."
    if stream:
        assert "".join(pieces) == found.text
        assert len(pieces) > 3  # it does not wait for the end
    for status in (400, 500):
        with pytest.raises(MemberError) as error:
            client.ask(EchoesKey(status), stream=stream, key=KEY)
        assert KEY[:6] not in str(error.value)
    for record in caplog.records:
        if not record.name.startswith(("httpcore", "asyncio")):
            assert KEY not in record.getMessage(), record.name


@given(data=st.data())
def test_a_key_cut_into_any_pieces_is_taken_out_and_nothing_else(data: st.DataObject) -> None:
    key = data.draw(st.text("ab", min_size=1, max_size=5))
    text = data.draw(st.text("abc", max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    redactor = Redactor(key)
    ends = [0, *cuts, len(text)]
    pieces = [redactor.piece(text[start:end]) for start, end in pairwise(ends)]
    assert "".join([*pieces, redactor.rest()]) == text.replace(key, "[key]") == Redactor(key).whole(text)


def test_without_a_key_nothing_waits() -> None:
    assert Redactor(None).piece("sk-") == "sk-"


# Whether it is there


@pytest.mark.parametrize(
    ("key", "variable", "status", "problem"),
    [
        (None, None, None, None),
        (None, None, 404, None),
        (None, None, 500, None),
        (None, None, 401, r"^endpoints\.e: \S+ wants a key; name the variable that holds it in key_variable\.$"),
        (KEY, "MY_KEY", 401, r"^endpoints\.e: \S+ refuses the key in MY_KEY\.$"),
    ],
)
def test_what_keeps_an_endpoint_from_being_used(
    key: str | None, variable: str | None, status: int | None, problem: str | None
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 %d Told\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}" % (status or 200)
        )
        await writer.drain()
        writer.close()

    async def main() -> str | None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            config = EndpointConfig(url=f"http://127.0.0.1:{port}/v1", key_variable=variable)
            endpoint = Endpoint("e", config, key)
            try:
                return await endpoint.problem()
            finally:
                await endpoint.close()

    found = asyncio.run(main())
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert re.match(problem, found)


def test_the_bound_is_above_what_a_byte_level_tokenizer_makes(client: Client) -> None:
    said = [Message(role="user", content="🙂" * 10), Message(role="assistant", content="")]
    member = client.member(None, client.server.url)
    assert member.bound_tokens(said) == 40 + 2 * 16 + 64
    assert member.estimated_tokens(said) == 20 + 2 * 16 + 64
