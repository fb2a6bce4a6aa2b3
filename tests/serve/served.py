"""Applications served on a free port of the loopback, and models that answer as tests need."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from starlette.applications import Starlette

from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage
from moekit.serve import ChatModel, ChatReply
from moekit.serve.app import create_app
from moekit.serve.run import bind, hosts_of, server_of, url_of

OpenApp = Callable[[], AbstractAsyncContextManager[Starlette]]


class Served:
    """A server in a thread of its own or in the running loop; its block is its life."""

    def __init__(self, open_app: OpenApp) -> None:
        self._open_app = open_app
        self._socket = bind("127.0.0.1", 0)
        self.url = url_of(self._socket)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="served", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self._serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        await self._serving

    async def _serve(self) -> None:
        with self._socket:
            async with self._open_app() as app:
                self._server = server_of(app)
                self._ready.set()
                await self._server.serve(sockets=[self._socket])


def served(max_body_bytes: int = 20_000, **models: ChatModel) -> Served:
    """These models, under their names."""

    @asynccontextmanager
    async def open_app() -> AsyncIterator[Starlette]:
        yield create_app(models, hosts=hosts_of("127.0.0.1"), max_body_bytes=max_body_bytes)

    return Served(open_app)


@dataclass
class Scripted:
    """Answers with `pieces`, then fails if it is told to. hang: stops for ever before the piece of that number.

    asked: every conversation with its options. cancelled: set when an answer is cancelled.
    """

    pieces: tuple[str, ...] = ("Par", "is.")
    error: Exception | None = None
    hang: int | None = None
    finish_reason: str = "stop"
    extra: dict[str, object] | None = None
    asked: list[tuple[list[Message], ChatOptions]] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    async def chat(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> ChatReply:
        self.asked.append((list(messages), options))
        self.started.set()
        try:
            for number, piece in enumerate(self.pieces):
                if number == self.hang:
                    await asyncio.Event().wait()
                if on_text is not None:
                    await on_text(piece)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        reply = Reply(
            text="".join(self.pieces),
            usage=Usage(prompt_tokens=len(messages), completion_tokens=len(self.pieces)),
            finish_reason=self.finish_reason,  # type: ignore[arg-type]
        )
        return ChatReply(reply=reply, extra=self.extra)


FAILED = MoekitError("Two of three members failed: a (timeout), b (status 500).")
