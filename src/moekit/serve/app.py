"""The application: chat completions, whole or as a stream, and the list of models.

An error is always an error: before the first piece of an answer it is a status with an object that says what is wrong,
after it an event of the stream, never text of the answer. Whoever goes away cancels the answer.
"""

import asyncio
import json
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, TypeVar

from openai.types import Model
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from moekit.core.errors import MoekitError, did_you_mean
from moekit.core.validation import InvalidData, validate
from moekit.serve.api_errors import RequestError, error_object, error_response
from moekit.serve.protocol import ChatModel
from moekit.serve.schemas import ChatRequest, ResponseObjects, check_characters, supported

MAX_BODY_BYTES = 8 * 1024 * 1024
_LONGEST_NAME = 200

Result = TypeVar("Result")


def create_app(
    models: Mapping[str, ChatModel], *, hosts: Collection[str] | None = None, max_body_bytes: int = MAX_BODY_BYTES
) -> Starlette:
    """Make an application that answers as each of `models` under its name.

    Args:
        models: what answers, by the name that requests ask for.
        hosts: the names by which a request may call this server; None for any. A page in a browser can have a name of
            its own point to this machine; it cannot have its requests say another name.
        max_body_bytes: the longest request that is read; a longer one gets status 413.
    """

    async def complete(request: Request) -> Response:
        try:
            if hosts is not None and request.url.hostname not in hosts:
                raise RequestError(f"This server is not {request.url.hostname!r}.", status=421)
            asked = _parse(await _body(request, max_body_bytes))
            if asked.model not in models:
                raise _no_such_model(asked.model, models)
            if asked.stream:
                return AnswerStream(asked, models[asked.model])
            return JSONResponse(await _unless_gone(request.receive, _whole(asked, models[asked.model])))
        except MoekitError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response()  # to nobody

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model_object(name) for name in models]})

    async def tell_model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(_model_object(name)) if name in models else error_response(_no_such_model(name, models))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", tell_model),
        Route("/health", health),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_such_route, 500: _unexpected})


class AnswerStream(Response):
    """An answer as server-sent events, each piece on its way as soon as it is made.

    Not sse-starlette's response: that one sends the status before there is an answer, so that no failure could have its
    own, and importing it replaces uvicorn's handler of signals for the whole process.
    """

    media_type = "text/event-stream"

    def __init__(self, asked: ChatRequest, model: ChatModel) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.asked, self.model = asked, model
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or the error that came instead of it, unless the client goes away first."""
        try:
            await _unless_gone(receive, self._answer(send))
        except ClientDisconnect:
            return
        except MoekitError as error:
            if not self.started:
                await error_response(error)(scope, receive, send)
                return
            await self._end(send, error_object(error))
        except Exception:
            if self.started:
                await self._end(send, error_object(_UNEXPECTED))
            raise
        else:
            await self._end(send, "[DONE]")

    async def _answer(self, send: Send) -> None:
        objects = ResponseObjects(self.asked.model, tells_usage=self.asked.stream_options.include_usage)

        async def on_text(piece: str) -> None:
            delta = ChoiceDelta(content=piece) if self.started else ChoiceDelta(role="assistant", content=piece)
            await self._send(send, objects.piece(delta))

        answer = await self.model.chat(self.asked.conversation, self.asked.options, on_text)
        if not self.started:
            await on_text("")
        await self._send(send, objects.end(answer.reply.finish_reason, answer.extra))
        if self.asked.stream_options.include_usage:
            await self._send(send, objects.usage(answer.reply.usage))

    async def _end(self, send: Send, event: dict[str, Any] | str) -> None:
        await self._send(send, event)
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, event: dict[str, Any] | str) -> None:
        """Send one event; the status leaves with the first, when it is known that there is something to tell."""
        if not self.started:
            self.started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        data = event if isinstance(event, str) else json.dumps(event)
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def _model_object(name: str) -> dict[str, Any]:
    return Model(id=name, object="model", created=0, owned_by="moekit").model_dump(exclude_unset=True)


def _no_such_model(name: str, models: Collection[str]) -> RequestError:
    shown = name[:_LONGEST_NAME]
    told = f"There is no model {shown!r}: {did_you_mean(shown, models)}"
    return RequestError(told, status=404, param="model", code="model_not_found")


async def _whole(asked: ChatRequest, model: ChatModel) -> dict[str, Any]:
    answer = await model.chat(asked.conversation, asked.options)
    reply = answer.reply
    return ResponseObjects(asked.model).whole(reply.text, reply.finish_reason, reply.usage, answer.extra)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for what `work` gives; cancel it and raise ClientDisconnect where the client goes away first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _body(request: Request, most: int) -> bytes:
    """Read the request's body; raise RequestError where it is too large, or does not call itself JSON.

    The type is asked for because a web page may have a browser send any text to this machine, but not JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("The request's Content-Type must be application/json.", status=415)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise RequestError(f"The request is larger than the {most} bytes that are read here.", status=413)
    return bytes(body)


def _parse(body: bytes) -> ChatRequest:
    try:
        data = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The request is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise RequestError("The request is not a JSON object.")
    check_characters(data)
    try:
        return validate(ChatRequest, supported(data), where="The request")
    except InvalidData as error:
        raise RequestError(str(error), param=error.path or None) from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


_UNEXPECTED = MoekitError("The server failed in a way that nobody foresaw; its log says more.")


async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(_UNEXPECTED)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"There is no {request.method} {request.url.path} here; there are POST /v1/chat/completions, GET /v1/models."
    return error_response(RequestError(told, status=error.status_code))
