"""Requests and responses of /v1/chat/completions. What would have to be ignored to be accepted is refused by name."""

import json
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from moekit.core.messages import ChatOptions, FinishReason, Message, Role, Usage

_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# What is not done here, and the value that asks for nothing.
_UNSUPPORTED: Mapping[str, Any] = {
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "logprobs": False,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
}

# Keys that clients send and that change nothing about an answer.
_WITHOUT_EFFECT = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)


def _text(content: Any) -> Any:
    """Content in parts is joined; parts that are no text are refused."""
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"only parts of type 'text' can be read here, not {kind!r}")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError("expected a text, or a list of parts of type 'text'")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which no text can hold") from error
    return content


def _texts(stop: Any) -> Any:
    return (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop


Text = Annotated[str, BeforeValidator(_text)]


class _Schema(BaseModel):
    """Base of what clients send: nothing is converted silently, and null is the same as leaving a key out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None and key not in _WITHOUT_EFFECT}


class RequestMessage(_Schema):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: Any) -> Any:
        """What a client got as a message it may send back, empty lists included."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or value not in ([], {}, "")}


class StreamOptions(_Schema):
    """include_usage: a last event with the usage."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Schema):
    """The body of a request."""

    model: str
    messages: tuple[RequestMessage, ...] = Field(min_length=1, strict=False)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_texts), Field(max_length=4)] = ()
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key, nothing in _UNSUPPORTED.items():
            if data.get(key, nothing) not in (nothing, None):
                raise ValueError(f"{key} is not supported here, other than {json.dumps(nothing)}")
        return {key: value for key, value in data.items() if key not in _UNSUPPORTED}

    @property
    def conversation(self) -> list[Message]:
        """The messages; a developer speaks as the system."""
        return [Message(role=_ROLES[message.role], content=message.content) for message in self.messages]

    @property
    def options(self) -> ChatOptions:
        """How the answer is to be drawn."""
        return ChatOptions(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            stop=self.stop,
            seed=self.seed,
        )


class ResponseObjects:
    """The objects that answer one request, whole or as the events of a stream."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(
        self, text: str, finish_reason: FinishReason, usage: Usage, extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The answer in one object."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._object("chat.completion", [choice], extra) | {"usage": usage_object(usage)}

    def piece(self, delta: dict[str, str]) -> dict[str, Any]:
        """Some more of the answer."""
        return self._event(delta, None, None)

    def end(self, finish_reason: FinishReason, extra: Mapping[str, Any] | None) -> dict[str, Any]:
        """After the last piece."""
        return self._event({}, finish_reason, extra)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What it cost, in an event of its own without a choice."""
        return self._object("chat.completion.chunk", [], None) | {"usage": usage_object(usage)}

    def _event(
        self, delta: dict[str, str], finish_reason: FinishReason | None, extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._object("chat.completion.chunk", [choice], extra)

    def _object(self, kind: str, choices: list[dict[str, Any]], extra: Mapping[str, Any] | None) -> dict[str, Any]:
        told = {} if extra is None else {"moekit": dict(extra)}
        return self._head | {"object": kind, "choices": choices} | told


def usage_object(usage: Usage) -> dict[str, int]:
    """Usage as the protocol has it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
