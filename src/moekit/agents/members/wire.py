"""What a server sent, taken apart with nothing believed; and what went wrong, in a sentence and a kind."""

import math
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard

import openai

from moekit.agents.members.member import MemberError, Reason
from moekit.agents.members.redaction import Redactor
from moekit.core.messages import Usage

_LONGEST_MESSAGE = 200
_RETRYABLE = (408, 429)


class WireError(Exception):
    """Not the shape of an answer."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, or all of it. usage: None where it told none, or nonsense."""

    text: str
    finish_reason: str | None
    usage: Usage | None


def piece_of(sent: Any) -> Piece:
    """Read a completion, or a chunk of one. Raises WireError.

    The client builds its objects without looking at what it puts into them, so that anything can be anywhere.
    """
    try:
        choices = list(sent.choices)
        usage = _usage(sent.usage)
        if not choices:
            return _without_choices(sent, usage)
        said = choices[0].delta if sent.object == "chat.completion.chunk" else choices[0].message
        content, reason = said.content, choices[0].finish_reason
    except (AttributeError, TypeError) as error:
        raise WireError from error
    if not isinstance(content, str | None) or not isinstance(reason, str | None):
        raise WireError
    return Piece(text=_whole_characters(content or ""), finish_reason=reason, usage=usage)


def vectors_of(sent: Any, count: int) -> tuple[list[list[float]], Usage]:
    """Read the vectors of an answer of /embeddings, in the order of the texts. Raises WireError."""
    try:
        found = {int(each.index): [float(number) for number in each.embedding] for each in sent.data}
        usage = _usage(sent.usage, completion=False)
    except (AttributeError, TypeError, OverflowError) as error:
        raise WireError from error
    if sorted(found) != list(range(count)) or len({len(vector) for vector in found.values()}) > 1:
        raise WireError
    if not all(math.isfinite(number) for vector in found.values() for number in vector):
        raise WireError
    return [found[place] for place in range(count)], usage or Usage()


def failure(name: str, error: BaseException, redactor: Redactor, *, begun: bool) -> MemberError:
    """Make the error that member `name` raises for what the client did. begun: part of an answer had come."""
    text: str
    reason: Reason
    usage: Usage | None
    match error:
        case MemberError():
            return error
        case openai.APIStatusError():
            return _refused(name, error, redactor)
        case openai.APIConnectionError() if _never_sent(error):
            text, reason, usage = "its server cannot be reached", "unreachable", Usage()
        case openai.APIConnectionError():
            what = "in the middle of its answer" if begun else "before it answered"
            text, reason, usage = f"the connection broke {what}", "truncated" if begun else "unreachable", None
        case openai.APIError():
            text, reason, usage = f"its server broke off: {_told(error, redactor)}", "status", None
        case _:
            text, reason, usage = "what its server sent is no answer", "garbage", None
    return MemberError(f"{name}: {text}.", reason=reason, retryable=True, usage=usage)


def _refused(name: str, error: openai.APIStatusError, redactor: Redactor) -> MemberError:
    status = error.status_code
    too_long = error.code == "context_length_exceeded"
    return MemberError(
        f"{name}: its server answered with status {status}: {_told(error, redactor)}.",
        reason="context" if too_long else "status",
        retryable=status in _RETRYABLE or status >= 500,
        retry_after_s=retry_after_s(error.response.headers.get("retry-after")),
        usage=Usage(),
    )


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Read the seconds that a Retry-After asks for, a number or a date (RFC 9110, 10.2.3); None for neither."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            then = parsedate_to_datetime(text)
        except ValueError:
            return None
        # A date without a zone counts as UTC.
        then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
        seconds = (then - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _told(error: openai.APIError, redactor: Redactor) -> str:
    """Say what the server said went wrong: one short line, without the key."""
    told = error.body.get("message") if isinstance(error.body, dict) else None
    said = told if isinstance(told, str) and told.strip() else "it says no more"
    line = " ".join(redactor.whole(_whole_characters(said)).split())
    return (line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…").rstrip(".")


def _never_sent(error: openai.APIConnectionError) -> bool:
    """Tell whether not even a connection came about, so that nobody can have counted anything."""
    return any(isinstance(cause, ConnectionRefusedError | socket.gaierror) for cause in _causes(error))


def _causes(error: BaseException) -> Iterable[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _without_choices(sent: Any, usage: Usage | None) -> Piece:
    """Read the last event of a stream, which has the usage and no choices; anything else without is no answer."""
    if sent.object != "chat.completion.chunk":
        raise WireError
    return Piece(text="", finish_reason=None, usage=usage)


def _usage(told: Any, *, completion: bool = True) -> Usage | None:
    read = getattr(told, "prompt_tokens", None)
    written = getattr(told, "completion_tokens", None) if completion else 0
    if _is_count(read) and _is_count(written):
        return Usage(prompt_tokens=read, completion_tokens=written)
    return None


def _is_count(number: Any) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _whole_characters(text: str) -> str:
    """Replace halves of characters, which JSON can hold and no file and no other server takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
