"""From the bytes of a response to the JSON values in it, in whatever form they come.

A stream of server-sent events, lines of JSON, or one JSON value: what a body is follows from what stands in it, neither
from what was asked for nor from its content type. OpenAI's client and httpx2 have readers of events, which refuse what
servers do send: a last event without a blank line, events with one line end between them, a byte-order mark, a body of
JSON where a stream was asked for.
Source: WHATWG HTML, 9.2.6, "Interpreting an event stream".
"""

import json
import re
from collections.abc import Iterator
from typing import Any

_LINE_END = re.compile(rb"\r\n|\r|\n")
_VISIBLE = re.compile(r"\S")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DONE = ("[DONE]", '"[DONE]"')
_MOST_TEXT = 400
"""Characters of what is no JSON that are kept to be told."""


class _Lines:
    """Cuts bytes at line ends, wherever their chunks end. Only bytes: a string may hold other ends of lines."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that the chunk completes."""
        if self._after_cr and chunk.startswith(b"\n"):  # one line end in two chunks
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        first, *following = _LINE_END.split(chunk)
        self._rest += first
        for part in following:
            line, self._rest = bytes(self._rest), bytearray(part)
            yield line

    def rest(self) -> bytes:
        """Give what comes after the last line end."""
        return bytes(self._rest)


class BodyReader:
    """Finds the JSON values of one body. The same bytes give the same values, however they are cut into chunks.

    Attributes:
        is_done: the stream has said that it is over; what follows is not read.
        is_empty: nothing but white space, comments and names of events came.
        unread: how many events, or other parts, are no JSON.
        text: the beginning of the first part that is no JSON.
    """

    def __init__(self) -> None:
        self._lines = _Lines()
        self._begun = False
        self._event = ""
        self._data: list[str] = []
        self._other: list[str] = []
        self.is_done, self.is_empty = False, True
        self.unread, self.text = 0, ""

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """Yield the values that the chunk completes; an array is each of its values."""
        for line in self._lines.feed(chunk):
            yield from self._read(line)

    def end(self) -> Iterator[Any]:
        """Yield what is left when the body is over."""
        yield from self._read(self._lines.rest())
        if not self.is_done:
            yield from self._end_event()
            yield from self._whole("\n".join(self._other))

    def _read(self, line: bytes) -> Iterator[Any]:
        if self.is_done:
            return
        if not self._begun:
            self._begun, line = True, line.removeprefix(_BYTE_ORDER_MARK)
        text = line.decode("utf-8", "replace")
        field, _, value = text.partition(":")
        if field == "data":
            yield from self._read_data(value.removeprefix(" "))
        elif self._other:
            self._other.append(text)
        elif not text.strip():
            yield from self._end_event()
        elif field == "event":
            self._event = value.strip()
        elif field not in ("", "id", "retry"):
            yield from self._read_other(text)

    def _read_data(self, data: str) -> Iterator[Any]:
        """Read a line of an event: nearly all events are one, and are not held up until the next line."""
        if data.strip() in _DONE:
            yield from self._end_event()
            self.is_done, self.is_empty = True, False
        elif self._data:
            self._data.append(data)
        elif data.strip():
            self.is_empty = False
            try:
                yield from self._named(json.loads(data))
            except (ValueError, RecursionError):
                self._data.append(data)

    def _end_event(self) -> Iterator[Any]:
        """Read an event of several lines; where they are no value together, each that is one by itself."""
        lines, self._data = self._data, []
        if lines:
            try:
                yield from self._named(json.loads("\n".join(lines)))
            except (ValueError, RecursionError):
                for line in lines:
                    yield from self._alone(line)
        self._event = ""

    def _alone(self, line: str) -> Iterator[Any]:
        try:
            yield from self._named(json.loads(line))
        except (ValueError, RecursionError):
            if self._event == "error":
                yield {"error": line}
            else:
                self._leave(line)

    def _read_other(self, text: str) -> Iterator[Any]:
        """Read a line that belongs to no event: a value by itself, or the beginning of one of several lines."""
        self.is_empty = False
        if text.strip() in _DONE:
            self.is_done = True
            return
        try:
            yield from _each(json.loads(text))
        except (ValueError, RecursionError):
            self._other.append(text)

    def _whole(self, text: str) -> Iterator[Any]:
        """Read values that stand one after the other, however many lines each has."""
        decoder, place = json.JSONDecoder(), 0
        while found := _VISIBLE.search(text, place):
            try:
                value, place = decoder.raw_decode(text, found.start())
            except (ValueError, RecursionError):
                self._leave(text[found.start() :])
                return
            yield from _each(value)

    def _named(self, value: Any) -> Iterator[Any]:
        """Give the value of an event; an event may be called an error and its value be what the error says."""
        if self._event == "error" and not (isinstance(value, dict) and "error" in value):
            yield {"error": value}
        else:
            yield from _each(value)

    def _leave(self, text: str) -> None:
        self.unread += 1
        self.text = self.text or text[:_MOST_TEXT]


def _each(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else [value]
