"""What a JSON value from a server holds of an answer. Nothing in it is believed, and no form of it is asked for.

What servers send differs in every place: the names of objects, pieces without a delta, content in parts, numbers as
strings, an error under status 200. What is read is what can be told from the value itself.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moekit.core.messages import FinishReason, Usage

_FINISHED: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_completion_tokens": "length",
    "model_length": "length",
    "token_limit": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
}
"""Why an answer ended, in the words of OpenAI, Azure, Mistral, Anthropic, Google, Bedrock and Zhipu; else `stop`."""
_UNFINISHED = ("", "null", "none")
_FAILED = "error"
_PARTS = ("delta", "message", "text")
_THINKING = ("thinking", "reasoning", "redacted_thinking")
_WHY = ("message", "detail", "errors", "msg", "error_msg")
_NESTED = 4
"""Contents and usages stand no deeper than this."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an answer, or all of it.

    Attributes:
        text: of the answer.
        is_whole: the text is that of a whole message, and not of what is added to it.
        index: of the choice that the text is of, as the server writes it; None where it says none.
        reasoning: characters of reasoning, which is not part of the answer.
        calls_tool: it calls a tool instead of saying something.
        finish_reason: why the answer ended; None where it has not.
        usage: None where the value tells none, or nonsense.
        error: what the server says went wrong, any JSON value; None where it says nothing of the kind.
    """

    text: str = ""
    is_whole: bool = False
    index: str | None = None
    reasoning: int = 0
    calls_tool: bool = False
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: Any = None

    @property
    def says_something(self) -> bool:
        """Whether there is anything of an answer in it, if only its end."""
        return bool(self.text or self.reasoning or self.calls_tool or self.finish_reason)


def piece_of(sent: Any) -> Piece:
    """Read a value: a completion, an event of a stream, an error. What has nothing of them is an empty piece."""
    if not isinstance(sent, dict):
        return Piece()
    choice = next((each for each in _listed(sent.get("choices")) if isinstance(each, dict)), {})
    said = [choice.get(key) for key in _PARTS]
    text, place = next(((text, place) for place, each in enumerate(said) if (text := _said(each))), ("", 0))
    ended = choice.get("finish_reason")
    return Piece(
        text=whole_characters(text),
        is_whole=_PARTS[place] == "message",
        index=None if choice.get("index") is None else str(choice["index"]),
        reasoning=sum(_reasoning(each) for each in said if isinstance(each, dict)),
        calls_tool=any(each.get("tool_calls") or each.get("function_call") for each in said if isinstance(each, dict)),
        finish_reason=_finish_reason(ended),
        usage=_first_usage((sent, choice, sent.get("x_groq"))),
        error=_error(sent, choice, ended),
    )


def whole_characters(text: str) -> str:
    """Replace halves of characters, which JSON can hold and no file and no other server takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def vectors_of(sent: Any, count: int) -> tuple[list[list[float]], Usage] | None:
    """Read the vectors of an answer of /embeddings, in the order of the texts; None where it holds no such thing."""
    try:
        data = sent["data"]
        places = [int(each.get("index", place)) for place, each in enumerate(data)]
        vectors = [[float(number) for number in each["embedding"]] for each in data]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    found = dict(zip(places, vectors, strict=True))
    if sorted(places) != list(range(count)) or len({len(vector) for vector in vectors}) > 1:
        return None
    if not all(math.isfinite(number) for vector in vectors for number in vector):
        return None
    read = _count(_value(sent.get("usage"), "prompt_tokens", "input_tokens", "total_tokens"))
    return [found[place] for place in range(count)], Usage(prompt_tokens=read or 0)


def _listed(choices: Any) -> Iterable[Any]:
    if isinstance(choices, dict):
        return [choices] if any(key in choices for key in _PARTS) else choices.values()
    return choices if isinstance(choices, list) else []


def _said(part: Any) -> str:
    """Read what a delta or a message says: its content, or why it says nothing."""
    if isinstance(part, dict):
        return _text(part.get("content")) or _text(part.get("text")) or _text(part.get("refusal"))
    return part if isinstance(part, str) else ""


def _text(content: Any, depth: int = _NESTED) -> str:
    """Read a content: a text, or parts of it, of which those that are thoughts or no text say nothing."""
    if isinstance(content, str) or depth == 0:
        return content if isinstance(content, str) else ""
    if isinstance(content, list):
        return "".join(_text(part, depth - 1) for part in content)
    if isinstance(content, dict) and content.get("type") not in _THINKING:
        return next((text for key in ("text", "content", "value") if (text := _text(content.get(key), depth - 1))), "")
    return ""


def _reasoning(part: Mapping[str, Any]) -> int:
    """Count the characters of reasoning, wherever it stands; the first place that has some counts."""
    content = part.get("content")
    thoughts = [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    inside = [each.get("thinking") or each.get("reasoning") for each in thoughts if each.get("type") in _THINKING]
    told = (_text(part.get(key)) for key in ("reasoning_content", "reasoning", "thinking"))
    return len(next((text for text in told if text), "") or _text(inside))


def _finish_reason(ended: Any) -> FinishReason | None:
    if isinstance(ended, str):
        word = ended.strip().lower()
        return None if word in _UNFINISHED else _FINISHED.get(word, "stop")
    return "stop" if ended else None


def _first_usage(holders: Iterable[Any]) -> Usage | None:
    for holder in holders:
        told = holder.get("usage") if isinstance(holder, dict) else None
        read = _count(_value(told, "prompt_tokens", "input_tokens"))
        written = _count(_value(told, "completion_tokens", "output_tokens"))
        if read is not None and written is not None:
            return Usage(prompt_tokens=read, completion_tokens=written)
    return None


def _value(told: Any, *keys: str) -> Any:
    return next((told[key] for key in keys if told.get(key) is not None), None) if isinstance(told, dict) else None


def _count(number: Any) -> int | None:
    """Read a count of tokens, also one that is written as a string or a float; None for anything else."""
    if isinstance(number, str) and number.strip().isdecimal() and len(number) < 20:
        number = int(number)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else None


def _error(sent: Mapping[str, Any], choice: Mapping[str, Any], ended: Any) -> Any:
    """Find what went wrong: under `error`, or the value itself where it says something and has no choices."""
    if told := sent.get("error") or choice.get("error"):
        return told
    if isinstance(ended, str) and ended.strip().lower() == _FAILED:
        return {"message": "it gives no reason", "code": 500}
    says_why = sent.get("object") == "error" or any(sent.get(key) for key in _WHY)
    return dict(sent) if says_why and "choices" not in sent else None
