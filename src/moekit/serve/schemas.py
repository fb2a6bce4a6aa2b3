"""Requests and responses of /v1/chat/completions. What would have to be ignored to be accepted is refused by name."""

import json
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice as CompletionChoice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
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
    """Join content that comes in parts; refuse parts that are no text."""
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
        """Leave out unknown keys with empty values: what a client got as a message it may send back."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or value not in ([], {}, "")}


class StreamOptions(_Schema):
    """What a stream tells beside the answer.

    Attributes:
        include_usage: whether its last event holds the usage.
        include_obfuscation: accepted and without effect.
    """

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
    """The objects that answer one request, whole or as the events of a stream, made by OpenAI's own classes.

    Args:
        model: the name that the request asked for.
        tells_usage: whether a stream ends with the usage; its other events then say that theirs is null.
    """

    def __init__(self, model: str, *, tells_usage: bool = False) -> None:
        self._id, self._created, self._model = f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model
        self._tells_usage = tells_usage

    def whole(
        self, text: str, finish_reason: FinishReason, usage: Usage, extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Make the object that holds the whole answer."""
        message = ChatCompletionMessage(role="assistant", content=text, refusal=None)
        choice = CompletionChoice(index=0, message=message, logprobs=None, finish_reason=finish_reason)
        completion = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            object="chat.completion",
            choices=[choice],
            usage=_completion_usage(usage),
        )
        return _json_object(completion, extra)

    def piece(self, delta: ChoiceDelta) -> dict[str, Any]:
        """Make the event that holds some more of the answer."""
        return self._event(delta, None, None)

    def end(self, finish_reason: FinishReason, extra: Mapping[str, Any] | None) -> dict[str, Any]:
        """Make the event after the last piece."""
        return self._event(ChoiceDelta(), finish_reason, extra)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """Make the event that says what the answer cost, without a choice."""
        return _json_object(self._chunk([], usage=_completion_usage(usage)), None)

    def _event(
        self, delta: ChoiceDelta, finish_reason: FinishReason | None, extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        choice = ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish_reason)
        unknown = {"usage": None} if self._tells_usage else {}
        return _json_object(self._chunk([choice], **unknown), extra)

    def _chunk(self, choices: list[ChunkChoice], **usage: CompletionUsage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            object="chat.completion.chunk",
            choices=choices,
            **usage,
        )


def _json_object(made: BaseModel, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the JSON of an object, with what was set alone, and with `extra` under the key `moekit`."""
    told = {} if extra is None else {"moekit": dict(extra)}
    return made.model_dump(mode="json", exclude_unset=True) | told


def _completion_usage(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )
