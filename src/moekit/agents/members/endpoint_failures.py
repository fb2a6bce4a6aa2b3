"""What went wrong with a request to a server, in a sentence and a kind; and whether it is worth asking again.

Only what may pass is asked again: a connection that broke, a server that is too busy or failed. Where the server has
answered, whatever the form, another request would be paid for as the first one was.
"""

import math
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from moekit.agents.members.answer_pieces import whole_characters
from moekit.agents.members.member import MemberError, Reason
from moekit.agents.members.redaction import Redactor
from moekit.agents.members.surroundings import connection_fault, proxy_for
from moekit.core.messages import Usage

_LONGEST_MESSAGE = 200
_PASSING = (408, 429)
_REFUSED = (400, 413, 422)
_GATEWAY = (502, 503, 504)
_PROXY_WANTS_KEY = 407
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
_PASSING_WORDS = ("overload", "rate_limit", "server_error", "internal_error", "unavailable", "timeout", "try_again")
"""Parts of the types and codes of errors that may pass."""
_SAID = ("message", "detail", "error", "errors", "msg", "error_msg", "error_message", "error_description", "title")
_STATUS = ("status", "status_code", "http_status", "code")
_NESTED = 5


def failure(name: str, error: Exception, redactor: Redactor, *, url: str, begun: bool) -> MemberError:
    """Make the error that member `name` raises for what the client did. begun: a part of an answer had come."""
    if isinstance(error, MemberError):
        return error
    if isinstance(error, openai.APIStatusError):
        return _refused(name, error, redactor, url)
    if isinstance(error, httpx2.DecodingError):
        text = f"{name}: what its server sent is not packed as it says it is."
        return MemberError(text, reason="garbage")
    if isinstance(error, openai.APIConnectionError | httpx2.RequestError | ssl.SSLError):
        fault = connection_fault(error, url, begun=begun)
        return MemberError(
            f"{name}: {fault.text}.",
            reason="truncated" if begun else "unreachable",
            retryable=fault.may_pass,
            usage=None if fault.is_sent else Usage(),
        )
    # The client has made a request of what it was given; no server has seen it.
    return MemberError(f"{name}: its request cannot be made ({type(error).__name__}).", reason="refused", usage=Usage())


def told_error(name: str, told: Any, redactor: Redactor, usage: Usage | None) -> MemberError:
    """Make the error of what a server that had begun to answer, under status 200, says went wrong."""
    words = [str(word).lower() for word in _words(told)]
    status = next((int(word) for word in words if word.isdecimal() and 400 <= int(word) < 600), None)
    passing = (
        _may_pass(status) if status is not None else any(part in word for word in words for part in _PASSING_WORDS)
    )
    return MemberError(
        f"{name}: its server broke off: {_line(told, redactor)}.",
        reason=_reason(status or 0, words),
        retryable=passing,
        usage=usage,
    )


def no_answer(name: str, text: str, redactor: Redactor, usage: Usage | None) -> MemberError:
    """Make the error of a body in which no answer is. text: its beginning, or what else it was."""
    if not text:
        said = "its server sent nothing"
    elif _is_page(text):
        said = f"its server sent a page of HTML and no answer ({_line(text, redactor)}); is its url right, up to /v1"
    else:
        said = f"what its server sent is no answer: {_line(text, redactor)}"
    return MemberError(f"{name}: {said}.", reason="garbage", usage=usage)


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


def said_in(told: Any, depth: int = _NESTED) -> str | None:
    """Find the message in what a server says went wrong, in whatever form; None where it says nothing."""
    if isinstance(told, str):
        return _title(told) if _is_page(told) else told.strip() or None
    if isinstance(told, dict) and depth:
        return next((said for key in _SAID if (said := said_in(told.get(key), depth - 1))), None)
    if isinstance(told, list) and depth:
        return next((said for each in told if (said := said_in(each, depth - 1))), None)
    return None


def _refused(name: str, error: openai.APIStatusError, redactor: Redactor, url: str) -> MemberError:
    status, proxy = error.status_code, proxy_for(url)
    text = f"its server answered with status {status}: {_line(error.body, redactor)}"
    if status == _PROXY_WANTS_KEY and proxy is not None:
        text = f"{proxy} wants a name and a password (status {status})"
    elif status in _GATEWAY and proxy is not None:
        text += f" (through {proxy})"
    elif status == 404 and (said_in(error.body) is None or _is_page(str(error.body))):
        text += f"; is {url} right, up to /v1"
    return MemberError(
        f"{name}: {text}.",
        reason=_reason(status, [str(word) for word in _words(error.body)]),
        retryable=_may_pass(status),
        retry_after_s=retry_after_s(error.response.headers.get("retry-after")),
        usage=Usage(),
    )


def _reason(status: int, words: list[str]) -> Reason:
    if any(word in _TOO_LONG for word in words):
        return "context"
    return "refused" if status in _REFUSED else "status"


def _may_pass(status: int) -> bool:
    return status in _PASSING or status >= 500


def _words(told: Any, depth: int = _NESTED) -> Iterator[Any]:
    """Yield the codes and types of an error."""
    if isinstance(told, dict) and depth:
        yield from (told[key] for key in (*_STATUS, "type") if isinstance(told.get(key), str | int))
        yield from _words(told.get("error"), depth - 1)


def _line(told: Any, redactor: Redactor) -> str:
    """Say what the server said went wrong: one short line, without the key."""
    line = " ".join(redactor.whole(whole_characters(said_in(told) or "it says no more")).split())
    return (line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…").rstrip(".")


def _is_page(text: str) -> bool:
    return re.match(r"\s*<(!doctype|html|head|title|body|h\d|center|\?xml)\b", text, re.IGNORECASE) is not None


def _title(page: str) -> str:
    """Find what a page of HTML is about: its title, or else its first words."""
    found = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    words = (
        found[1] if found else re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL | re.IGNORECASE)
    )
    return " ".join(words.split()) or "an empty page of HTML"
