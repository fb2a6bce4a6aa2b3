"""An answer on its way from a server: its pieces put together, and what it is when no more come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx2

from moekit.agents.members.answer_pieces import Piece, piece_of
from moekit.agents.members.body_reader import BodyReader
from moekit.agents.members.endpoint_failures import no_answer, told_error
from moekit.agents.members.member import MemberError, cut_off_text
from moekit.agents.members.redaction import Redactor
from moekit.core.messages import FinishReason, OnText, Reply, Usage

# So long the end of a stream may take after it has said that it is over, so that its connection can be used again.
_DRAIN_S = 0.1
_SHOWN_BYTES = 400


class ArrivingAnswer:
    """Reads one response of a chat, a stream or a whole, whatever it was asked to be.

    Args:
        name: of the member, for errors.
        redactor: takes the key out of the text.
        on_text: gets the pieces of the text; an empty one where a piece came that has none.

    Attributes:
        begun: whether a part of an answer has come.
    """

    def __init__(self, name: str, redactor: Redactor, on_text: OnText | None) -> None:
        self._name, self._redactor, self._on_text = name, redactor, on_text
        self._reader, self._beginning = BodyReader(), b""
        self._texts: list[str] = []
        self._usage = Usage()
        self._reason: FinishReason | None = None
        self._index: str | None = None
        self._in_pieces = False
        self._reasoning, self._calls_tool = 0, False
        self.begun = False

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        """Read the body to its end. Raises MemberError where it tells of an error, and httpx2's where it breaks off."""
        try:
            async for chunk in chunks:
                self._beginning += chunk[: _SHOWN_BYTES - len(self._beginning)]
                for value in self._reader.feed(chunk):
                    await self._hear(value)
                if self._reader.is_done:
                    await _drain(chunks)
                    break
        except httpx2.RequestError:
            if self._reason is None:
                raise
            # The answer is here, with its end; what is lost is how much it cost, if that.
        for value in self._reader.end():
            await self._hear(value)

    async def finish(self, limit: int | None) -> Reply:
        """Make the answer; raise MemberError where there is none. limit: the most tokens that were asked for."""
        if not self.begun:
            beginning = "" if self._reader.is_empty else self._beginning.decode("utf-8", "replace")
            raise no_answer(self._name, beginning.strip(), self._redactor, self._told_usage)
        rest = self._redactor.rest()
        if rest:
            await self._say(rest)
        text = "".join(self._texts)
        if not text.strip():
            raise MemberError(
                f"{self._name} gave an empty answer{self._why_empty()}.", reason="empty", usage=self._told_usage
            )
        return Reply(
            text=text, usage=self._usage, finish_reason=self._reason or "stop", incomplete=self._incomplete(limit)
        )

    async def _hear(self, value: Any) -> None:
        piece = piece_of(value)
        if piece.usage is not None and piece.usage.total_tokens:
            self._usage = piece.usage  # the last one counts: some servers tell with every piece how many it is now
        if piece.says_something and self._is_ours(piece):
            self.begun = True
            self._reasoning += piece.reasoning
            self._calls_tool = self._calls_tool or piece.calls_tool
            self._reason = piece.finish_reason or self._reason
            await self._say(self._redactor.piece(self._new_text(piece)))
        elif piece.error is None:
            await self._say("")
        if piece.error is not None and (self._reason is None or not self._texts):
            raise told_error(self._name, piece.error, self._redactor, self._told_usage)

    def _is_ours(self, piece: Piece) -> bool:
        """Tell whether the piece is of the choice that came first: one answer was asked for."""
        if self._index is None:
            self._index = piece.index
        return piece.index is None or piece.index == self._index

    def _new_text(self, piece: Piece) -> str:
        """Give what a piece adds; after pieces, a whole message says again what they said."""
        if piece.is_whole and self._in_pieces:
            return ""
        self._in_pieces = self._in_pieces or (bool(piece.text) and not piece.is_whole)
        return piece.text

    async def _say(self, text: str) -> None:
        if text:
            self._texts.append(text)
        if self._on_text is not None:
            await self._on_text(text)

    @property
    def _told_usage(self) -> Usage | None:
        return self._usage if self._usage.total_tokens else None

    def _why_empty(self) -> str:
        if self._reason == "content_filter":
            return ": a content filter of its server let nothing through"
        reasoned = f" after {self._reasoning:,} characters of reasoning" if self._reasoning else ""
        if self._reason == "length":
            return f"{reasoned}, cut off before its first word: max_tokens is too small"
        return reasoned + (": it calls a tool, and has none" if self._calls_tool else "")

    def _incomplete(self, limit: int | None) -> str | None:
        if self._reason == "length":
            return cut_off_text(self._name, limit, self._usage.completion_tokens)
        if self._reason == "content_filter":
            return f"{self._name}: a content filter of its server cut the answer off."
        if self._reader.unread:
            return f"{self._name}: a piece of the answer came damaged and is missing."
        if self._reason is None and self._in_pieces and not self._reader.is_done:
            return f"{self._name}: its stream ended without saying that it was over; the answer may be incomplete."
        return None


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what follows the end of a stream, for a moment: a connection that was read to its end is used again."""
    with suppress(TimeoutError, httpx2.RequestError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in chunks:
                pass
