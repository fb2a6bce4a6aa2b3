"""Requests that nobody foresaw, to local models behind the server: no status of 500, no word of such a failure.

MOEKIT_FUZZED_REQUESTS says how many; a change to the server, the schemas or local members is worth 10,000.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.inference.tiny_models import byte_level, llama, save_tokenizer

from moekit.agents import AgentsConfig, Engine
from moekit.serve.app import create_app
from moekit.serve.run import hosts_of

EXAMPLES = int(os.environ.get("MOEKIT_FUZZED_REQUESTS", "200"))
TEMPLATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<s>{{ m.role }}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined %}{{ enable_thinking.upper() }}{% endif %}"
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
TEXT = st.one_of(st.text(max_size=12), st.sampled_from(["", "\0", "<|end|>", "\ue000", "\U00100000<s>", "e", "\n"]))
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.just(10**400), st.just(-1)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ANY_TEXT, inner, max_size=3)),
    max_leaves=6,
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=3)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "user", "assistant", "tool"]),
        "content": st.one_of(TEXT, TEXT, TEXT, PARTS, JUNK),
    },
    optional={"name": st.one_of(TEXT, JUNK), "tool_calls": JUNK, "refusal": JUNK},
)
CONVERSATION = st.one_of(
    *[TEXT.map(lambda text: [{"role": "user", "content": text}])] * 5,
    *[st.lists(MESSAGE, max_size=5)] * 2,
    JUNK,
)
# Of each key, values that are answered as often as others.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1, exclude_min=True),
    "max_tokens": st.integers(1, 4),
    "max_completion_tokens": st.integers(-1, 200),
    "stop": st.one_of(TEXT, st.lists(TEXT, max_size=5)),
    "seed": st.integers(-1, 2**64),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "messages", "x", "bos_token"]), JUNK),
    "n": st.just(1),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "99999"]), st.integers(-100, 100)),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "top_k": st.integers(-1, 1),
    "user": ANY_TEXT,
    "metadata": JUNK,
}
ALMOST_ANY_KEY = st.sampled_from([*sorted(VALUES), *sorted(VALUES), "no_such_key", "", "\ud800"])


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Requests of which about a third can be answered."""
    model = draw(st.one_of(*[st.sampled_from(["talks", "continues", "both"])] * 6, ANY_TEXT, JUNK))
    body: dict[str, Any] = {"model": model, "messages": draw(CONVERSATION)}
    for key in draw(st.lists(ALMOST_ANY_KEY, max_size=3)):
        body[key] = draw(st.one_of(*[VALUES.get(key, JUNK)] * 5, JUNK))
    return body


BODY = bodies()
DATA = st.one_of(
    *[BODY.map(lambda body: json.dumps(body).encode())] * 8,
    st.tuples(BODY, st.integers(0, 200)).map(lambda cut: json.dumps(cut[0]).encode()[: cut[1]]),
    JUNK.map(lambda junk: json.dumps(junk).encode()),
    st.binary(max_size=60),
)
HOSTS = st.sampled_from([*["localhost"] * 20, "localhost:1", "[::1", "evil", "", "a b"])
TYPES = st.sampled_from([*["application/json"] * 20, "Application/JSON; charset=x", "text/plain", ""])


class Front:
    """The server's application, asked without a connection."""

    def __init__(self, folder: Path) -> None:
        member = {"path": str(folder / "talks"), "context": 64, "max_tokens": 4}
        self._runner = asyncio.Runner()
        self._engine = Engine(
            AgentsConfig.model_validate(
                {
                    "members": {"talks": member, "continues": member | {"path": str(folder / "continues")}},
                    "strategies": {"both": {"kind": "moa", "layers": [["talks"]], "aggregator": "continues"}},
                }
            )
        )
        self._runner.run(self._engine.__aenter__())
        self._app = create_app(self._engine.models, hosts=hosts_of("127.0.0.1"), max_body_bytes=2000)

    def post(self, data: bytes, **headers: str) -> tuple[int, str]:
        """The status and the text that a client would see; what escapes the application is an error of the test."""
        return self._runner.run(self._post(data, headers))

    async def _post(self, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
        sent: list[Any] = []
        asked = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> Any:
            if asked:
                return asked.pop()
            return await asyncio.Event().wait()  # the client stays

        async def send(message: Any) -> None:
            sent.append(message)

        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "http_version": "1.1", "scheme": "http", "method": "POST", "query_string": b""}
        scope |= {"path": "/v1/chat/completions", "headers": named, "server": ("127.0.0.1", 80), "root_path": ""}
        await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()

    def close(self) -> None:
        self._runner.run(self._engine.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("talks", TEMPLATE), ("continues", None)):
        (folder / name).mkdir()
        llama(folder / name)
        save_tokenizer(byte_level(), folder / name, template)
    made = Front(folder)
    yield made
    made.close()


@pytest.mark.usefixtures("one_thread")
@given(data=DATA, host=HOSTS, kind=TYPES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
def test_no_request_is_a_failure_of_the_server(front: Front, data: bytes, host: str, kind: str) -> None:
    status, text = front.post(data, host=host, content_type=kind)
    event(f"status {status}")
    assert status in (200, 400, 404, 413, 415, 421), text
    assert "nobody foresaw" not in text
    if status != 200:
        error = json.loads(text)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"].strip()
    elif text.startswith("data: "):
        events = [event.removeprefix("data: ") for event in text.split("\n\n")]
        assert events[-2:] == ["[DONE]", ""], "no error within the stream"
    else:
        (choice,) = json.loads(text)["choices"]
        assert choice["finish_reason"] in ("stop", "length")
