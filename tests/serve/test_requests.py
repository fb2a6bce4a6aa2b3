"""What clients send: by habit, wrongly, and what is not done here. One key at a time, over HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serve.served import Scripted, Served, served
from tests.serve.test_app import post

from moekit.core.messages import ChatOptions, Message

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Capital of France?"}]}
PLAIN = ([Message(role="user", content="Capital of France?")], ChatOptions())


@pytest.fixture(scope="module")
def model() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def server(model: Scripted) -> Iterator[Served]:
    with served(max_body_bytes=200_000, m=model) as running:
        yield running


HARMLESS: dict[str, list[Any]] = {
    "n": [1, None],
    "best_of": [1],
    "stop": ["", None, [], [""], ["", ""]],
    "seed": [-1, None],
    "max_tokens": [None, -1],
    "max_completion_tokens": [None, -1],
    "temperature": [None],
    "top_p": [None],
    "user": ["somebody", "", {"id": 3}],
    "tools": [[], None],
    "tool_choice": ["auto", "none", None],
    "functions": [[]],
    "function_call": ["auto", "none"],
    "parallel_tool_calls": [True, False],
    "logit_bias": [{}, None],
    "logprobs": [False, None],
    "top_logprobs": [0, None],
    "frequency_penalty": [0, 0.0, None],
    "presence_penalty": [0, 0.0, None],
    "repetition_penalty": [1, 1.0],
    "top_k": [0, -1, None],
    "min_p": [0, 0.0],
    "echo": [False],
    "suffix": ["", None],
    "response_format": [{"type": "text"}, None],
    "modalities": [["text"], None],
    "reasoning_effort": [None],
    "stream": [False, None],
    "stream_options": [None, {}, {"include_usage": True}, {"include_obfuscation": False}],
    "service_tier": ["auto", "default", None],
    "store": [True, False],
    "metadata": [{"a": "b"}, {}, None],
    "prediction": [{"type": "content", "content": "x"}],
    "safety_identifier": ["x"],
    "prompt_cache_key": ["x"],
    "prompt_cache_retention": ["24h"],
    "cache_prompt": [True],
    "chat_template_kwargs": [{}, None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in HARMLESS for value in HARMLESS[key]])
def test_what_clients_send_by_habit_changes_nothing(server: Served, model: Scripted, key: str, value: Any) -> None:
    status, answer = post(server, ASK | {key: value})
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "Paris."
    assert model.asked[-1] == PLAIN


@pytest.mark.parametrize(
    "more",
    [
        {"name": "ann"},
        {"name": ""},
        {"name": None},
        {"tool_calls": []},
        {"tool_calls": None, "refusal": None, "audio": None, "function_call": None},
        {"content": [{"type": "text", "text": "Capital of "}, {"type": "text", "text": "France?"}]},
        {"content": [{"type": "text", "text": "Capital of France?", "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_what_stands_in_messages_by_habit_changes_nothing(
    server: Served, model: Scripted, more: dict[str, Any]
) -> None:
    status, answer = post(server, ASK | {"messages": [ASK["messages"][0] | more]})
    assert status == 200, answer
    assert model.asked[-1] == PLAIN


def test_variables_of_the_template_reach_the_model(server: Served, model: Scripted) -> None:
    assert post(server, ASK | {"chat_template_kwargs": {"enable_thinking": False}})[0] == 200
    assert model.asked[-1][1] == ChatOptions(template_variables={"enable_thinking": False})


REFUSED: dict[str, list[Any]] = {
    "n": [2, 0, True, "1"],
    "tools": [[{"type": "function"}], "x"],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "functions": [[{"name": "f"}]],
    "response_format": [{"type": "json_object"}, {"type": "json_schema"}, "text"],
    "modalities": [["text", "audio"]],
    "logprobs": [True, 1],
    "top_logprobs": [5],
    "logit_bias": [{"50256": -100}],
    "frequency_penalty": [0.5, -2, False],
    "presence_penalty": [1],
    "repetition_penalty": [1.1],
    "top_k": [40],
    "min_p": [0.05],
    "ignore_eos": [True],
    "reasoning_effort": ["high"],
    "verbosity": ["low"],
    "web_search_options": [{}],
    "audio": [{"voice": "x"}],
    "seed": [-2, 2**63, 10**30, 1.5, "1", True],
    "max_tokens": [0, -2, 1.5, "8", True],
    "temperature": [-0.1, 2.1, 1e999, "1", True],
    "top_p": [0, 1.1, "1"],
    "stop": [["a"] * 5, 5, [5], {"a": 1}],
    "stream": ["yes", 1],
    "stream_options": ["x", {"include_usage": "x"}],
    "messages": [[], "hi", None, {}, [5], ["hi"]],
    "model": [5, None, ["m"]],
    "chat_template_kwargs": ["x", [], [1]],
    "no_such_key": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in REFUSED for value in REFUSED[key]])
def test_what_is_wrong_or_not_done_here_is_named(server: Served, key: str, value: Any) -> None:
    status, answer = post(server, json.dumps(ASK | {key: value}).replace("Infinity", "1e999").encode())
    assert status == 400, answer
    assert key in answer["error"]["message"]
    assert answer["error"]["param"].partition("[")[0].partition(".")[0] == key
    assert answer["error"]["type"] == "invalid_request_error"
    assert "\n" not in answer["error"]["message"]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        (ASK | {"messages": [{"role": "user", "content": "\ud800"}]}, "character 0 is half", "messages[0].content"),
        (ASK | {"stop": ["ok", "a\udfff"]}, "character 1 is half", "stop[1]"),
        (ASK | {"model": "\ud800"}, "character 0 is half", "model"),
        (ASK | {"user": "\ud800"}, "character 0 is half", "user"),
        (ASK | {"chat_template_kwargs": {"a": ["\ud800"]}}, "is half of a surrogate", "chat_template_kwargs.a[0]"),
        (ASK | {"\ud800": 1}, "is half of a surrogate", None),
        (ASK | {"chat_template_kwargs": deep(200)}, "nested more than 16 deep", "chat_template_kwargs"),
        (ASK | {"metadata": deep(200), "temperature": 5}, "temperature", "temperature"),
        (json.dumps(ASK | {"temperature": float("nan")}).encode(), "NaN is no number in JSON", None),
        (json.dumps(ASK | {"seed": 0}).replace("0", "9" * 5000).encode(), "not valid JSON", None),
        (b'{"a": "' + b"\xff" * 10 + b'"}', "not valid JSON", None),
        (json.dumps(ASK).encode("utf-16"), "", None),
        (b"", "not valid JSON", None),
        (b"null", "not a JSON object", None),
        (b"\x00", "not valid JSON", None),
    ],
)
def test_what_no_text_and_no_number_can_be(server: Served, body: Any, said: str, param: str | None) -> None:
    status, answer = post(server, body)
    if not said:
        assert status == 200  # JSON of old may be in another encoding
        return
    assert status == 400
    assert said in answer["error"]["message"]
    assert answer["error"]["param"] == param
