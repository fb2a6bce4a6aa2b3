"""Whatever a client sends, the answer is an answer or an error that names what the client did: never a surprise.

MOEKIT_FUZZ=10000 draws as many requests; without it, a part of them.
"""

import asyncio
import json
import logging
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from tests.serve.served import Scripted

from moekit.serve.app import create_app
from moekit.serve.schemas import _UNSUPPORTED, _WITHOUT_EFFECT, ChatRequest

ANYTHING = list(HealthCheck)
Headers = list[tuple[bytes, bytes]]
TRIES = int(os.environ.get("MOEKIT_FUZZ", "300"))
KEYS = (*ChatRequest.model_fields, *_UNSUPPORTED, *sorted(_WITHOUT_EFFECT), "qqqq", "")
ODD = ("", " ", "good", "\ud800", "\udcff", "\0", "敏捷 🦊", "<|im_end|>", "x" * 300, "NaN")
NUMBERS = st.sampled_from((0, 1, -1, 0.5, -0.5, 2, 1e308, 10**40, 2**63, 2**63 - 1, -(2**63)))
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(ODD) | st.text(max_size=5)
NAMES = st.sampled_from((*KEYS, "role", "content", "type", "text"))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
ROLES = st.sampled_from(("user", "system", "assistant", "developer", "tool", "function", "", None, 3))
PART = st.fixed_dictionaries({"type": st.sampled_from(("text", "image_url"))}, optional={"text": SCALARS})
CONTENT = st.sampled_from(ODD) | st.lists(PART, max_size=2) | SCALARS
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES, "content": CONTENT}, optional={"name": SCALARS, "tool_calls": VALUES, "refusal": VALUES}
)
USUAL = {"model": "good", "messages": [{"role": "user", "content": "Capital of France?"}]}
REQUESTS = st.one_of(
    *[st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3).map(lambda changes: USUAL | changes)] * 3,
    st.lists(MESSAGE | VALUES, max_size=3).map(lambda messages: USUAL | {"messages": messages}),
    VALUES,
).map(lambda data: json.dumps(data).encode())
HOSTILE = (
    *(b"[" * 5000, b'{"a":' * 5000, b"\xef\xbb\xbf{}", b"{}" * 20_000, b'{"model": NaN}', b"1e999"),
    b'{"n": ' + b"9" * 5000 + b"}",
)
BODIES = st.one_of(
    *[REQUESTS] * 6,
    st.binary(max_size=40),
    REQUESTS.map(lambda body: body[: len(body) // 2]),
    REQUESTS.map(lambda body: body + body),
    st.sampled_from(HOSTILE),
)
PATHS = st.sampled_from(
    (
        *["/v1/chat/completions"] * 12,
        *("/v1/models", "/v1/models/good", "/v1/models/\ufffd", "/v1/completions", "/", "//", "/health", "/%00"),
    )
)
METHODS = st.sampled_from((*["POST"] * 8, "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"))
USUAL_HEADERS = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
HEADER = st.tuples(
    st.sampled_from((b"host", b"content-type", b"content-length", b"authorization", b"accept", b"content-encoding")),
    st.sampled_from((b"127.0.0.1", b"elsewhere", b"", b"\xff", b"gzip", b"-1", b"9" * 12, b"[::1", b"a:b:c", b"text")),
)
HEADERS = st.one_of(*[st.just(USUAL_HEADERS)] * 7, st.lists(HEADER, max_size=2).map(lambda more: USUAL_HEADERS + more),
                    st.lists(HEADER, max_size=2))  # fmt: skip


async def ask(app: Starlette, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, bytes]:
    """Call the application as a server does; give the status and the whole body."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    came = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if came:
            return came.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(event: Any) -> None:
        sent.append(event)

    await asyncio.wait_for(app(scope, receive, send), 20)
    assert sent[0]["type"] == "http.response.start"
    return sent[0]["status"], b"".join(event.get("body", b"") for event in sent[1:])


@pytest.mark.slow
def test_no_request_is_a_surprise(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app({"good": Scripted()}, hosts=("127.0.0.1", "localhost"), max_body_bytes=30_000)
    with asyncio.Runner() as runner:

        @settings(max_examples=TRIES, deadline=None, derandomize=True, database=None, suppress_health_check=ANYTHING)
        @given(METHODS, PATHS, HEADERS, BODIES)
        def try_it(method: str, path: str, headers: Headers, body: bytes) -> None:
            with caplog.at_level(logging.WARNING):
                status, answer = runner.run(ask(app, method, path, headers, body))
            assert status in (200, 400, 404, 405, 413, 415, 421), (status, answer)
            assert b"nobody foresaw" not in answer
            if status >= 400 and method != "HEAD":
                error = json.loads(answer)["error"]
                assert error.keys() == {"message", "type", "param", "code"}
                assert error["message"]
                assert error["type"] == "invalid_request_error"

        try_it()
    assert not caplog.records
