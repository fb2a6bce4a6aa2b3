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
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from moekit.core.messages import ChatOptions, FinishReason, Message, Role, Usage
from moekit.serve.api_errors import RequestError

_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# What is not done here, and the values that ask for nothing: OpenAI's keys first, then those that vLLM and llama.cpp
# take as well. null is always one of them.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "top_k": (0, -1),
    "typical_p": (1,),
    "use_beam_search": (False,),
}

# Keys that clients send and that change nothing about an answer.
_WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user"),
        *("cache_prompt", "cache_salt", "keep_alive", "priority", "request_id", "timings_per_token"),
    }
)
_DEEPEST = 16
_MOST_TOLD = 80


def supported(data: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys of a request that say how it is to be answered.

    Raises:
        RequestError: naming the first key that asks for what is not done here.
    """
    for key, nothing in _UNSUPPORTED.items():
        value = data.get(key)
        if value is not None and not any(_is_same(value, each) for each in nothing):
            than = f", other than {' or '.join(map(json.dumps, nothing))}" if nothing else ""
            raise RequestError(f"The request: {key} is not supported here{than}.", param=key)
    return {key: value for key, value in data.items() if key not in _UNSUPPORTED.keys() | _WITHOUT_EFFECT}


def check_characters(data: Any) -> None:
    """Raise RequestError, naming the place, for half of a surrogate pair: JSON can hold it, and no text can."""
    found: list[tuple[str, Any]] = [("", data)]
    while found:  # not by recursion: whoever sends the request decides how deep it is
        path, value = found.pop()
        if isinstance(value, dict):
            found += [(path, key) for key in value]
            found += [(f"{path}.{key}" if path else key, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            found += [(f"{path}[{place}]", inner) for place, inner in enumerate(value)]
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                param = path.encode("ascii", "replace").decode()[:_MOST_TOLD] or None
                where = ": ".join(filter(None, ("The request", param)))
                raise RequestError(
                    f"{where}: character {error.start} is half of a surrogate pair, which no text can hold.",
                    param=param,
                ) from error


def _is_same(value: Any, other: Any) -> bool:
    """Tell whether two values are the same in JSON, where true is not 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


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
    return content


def _texts(stop: Any) -> Any:
    """Make a tuple of one stop string or several; empty ones ask for nothing."""
    listed = [stop] if isinstance(stop, str) else stop
    return tuple(each for each in listed if each != "") if isinstance(listed, list) else stop


def _unless_minus_one(value: Any) -> Any:
    """Take -1, other servers' word for no limit and for another seed each time, as nothing."""
    return None if _is_same(value, -1) else value


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that hold values that hold values, and so on."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        level = [inner for inner in level if isinstance(inner, dict | list)]
    if level:
        raise ValueError(f"values are nested more than {_DEEPEST} deep")
    return value


Text = Annotated[str, BeforeValidator(_text)]
Count = Annotated[int | None, Field(ge=1), BeforeValidator(_unless_minus_one)]
Seed = Annotated[int | None, Field(ge=0, lt=2**63), BeforeValidator(_unless_minus_one)]


class _Schema(BaseModel):
    """Base of what clients send: nothing is converted silently, and null is the same as leaving a key out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}


class RequestMessage(_Schema):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: Any) -> Any:
        """Leave out a name, which no template reads, and unknown keys with empty values.

        What a client got as a message it may send back.
        """
        if not isinstance(data, dict):
            return data
        kept = {key: value for key, value in data.items() if key in cls.model_fields or value not in ([], {}, "")}
        kept.pop("name", None)
        return kept


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
    max_tokens: Count = None
    max_completion_tokens: Count = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_texts), Field(max_length=4)] = ()
    seed: Seed = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_shallow)] = Field(default_factory=dict)

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
            template_variables=self.chat_template_kwargs,
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
