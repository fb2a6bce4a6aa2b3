"""A model behind a server that speaks the OpenAI HTTP API. Whatever comes back is read as a stranger's data."""

import asyncio
from collections.abc import Sequence
from typing import Any

import openai

from moekit.agents.config.agents_config import EndpointConfig, EndpointMemberConfig
from moekit.agents.members.member import MemberError, Reason
from moekit.agents.members.redaction import Redactor
from moekit.agents.members.wire import Piece, WireError, failure, piece_of, vectors_of
from moekit.core.messages import ChatOptions, FinishReason, Message, OnText, Reply, Usage

_CHECK_S = 3.0
# A byte-level tokenizer never makes more tokens than bytes; a chat template adds some a message and some a prompt.
_TOKENS_A_MESSAGE = 16
# Prose in any script, code and figures have three bytes a token or more with the tokenizers that are in use.
_LIKELY_BYTES_A_TOKEN = 2
_TOKENS_A_PROMPT = 64
# What the client and its parser raise where an answer is not what it should be.
_FAILURES = (openai.OpenAIError, WireError, ValueError, RecursionError)


class Endpoint:
    """One server: its connections, and its key, which nothing else holds. key: None: it needs none."""

    def __init__(self, name: str, config: EndpointConfig, key: str | None) -> None:
        self.name, self.url = name, config.url
        self._variable, self._key = config.key_variable, key
        # What the client would read from the environment is not meant for this server.
        self.headers: dict[str, str | openai.Omit] = {
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }
        if key is None:
            self.headers["Authorization"] = openai.Omit()
        self.client = openai.AsyncOpenAI(
            base_url=config.url,
            api_key=key or "none",
            admin_api_key="",
            max_retries=0,  # retrying is the caller's, and so is the clock
            timeout=None,
            # A redirect would carry prompts to where nobody sent them.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=None),
        )
        # The client imports its parts at first use, which would take a quarter of a second of somebody's deadline.
        self.completions, self.embeddings = self.client.chat.completions, self.client.embeddings

    def redactor(self) -> Redactor:
        """Make what takes the key out of what one request brings back."""
        return Redactor(self._key)

    async def problem(self) -> str | None:
        """Say what keeps the server from being used, a sentence; None where it answers, whatever it says."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await self.client.get("/models", cast_to=object, options={"headers": self.headers})
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            if self._variable is None:
                return (
                    f"endpoints.{self.name}: {self.url} wants a key; name the variable that holds it in key_variable."
                )
            return f"endpoints.{self.name}: {self.url} refuses the key in {self._variable}."
        except (TimeoutError, openai.APIConnectionError):
            return f"endpoints.{self.name}.url: nothing answers at {self.url}."
        except (openai.OpenAIError, ValueError):
            return None
        return None

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()


class EndpointMember:
    """A model of an endpoint; see `Member`."""

    counts_slowly = False

    def __init__(self, name: str, config: EndpointMemberConfig, endpoint: Endpoint) -> None:
        self.name, self.context, self.price = name, config.context, config.price
        self.identity = f"{endpoint.url} {config.model}"
        self.defaults = ChatOptions(temperature=config.temperature, max_tokens=config.max_tokens)
        self._model, self._endpoint = config.model, endpoint
        self._limit_key = "max_tokens"

    def bound_tokens(self, messages: Sequence[Message]) -> int:
        """Count the bytes, and some for the chat template."""
        return _bytes(messages) + len(messages) * _TOKENS_A_MESSAGE + _TOKENS_A_PROMPT

    def estimated_tokens(self, messages: Sequence[Message]) -> int:
        """Count half the bytes, and some for the chat template. It never varies: a replay asks the same."""
        return _bytes(messages) // _LIKELY_BYTES_A_TOKEN + len(messages) * _TOKENS_A_MESSAGE + _TOKENS_A_PROMPT

    async def complete(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> Reply:
        """Send one request; as a stream where `on_text` wants pieces. Raises MemberError."""
        arriving = _Arriving(self._endpoint.redactor(), on_text)
        problem: BaseException
        try:
            if on_text is None:
                arriving.add(piece_of(await self._send(messages, options)))
            else:
                async for chunk in await self._send(messages, options, stream=True):
                    await arriving.hear(piece_of(chunk))
            return await arriving.finish(self.name)
        except _FAILURES as error:
            problem = error
        # Not inside the handler: what the server sent must not hang on the error as its cause.
        raise failure(self.name, problem, self._endpoint.redactor(), begun=arriving.begun)

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], Usage]:
        """Compute a vector a text, by the endpoint's /embeddings. Raises MemberError."""
        problem: BaseException
        try:
            told = await self._endpoint.embeddings.create(
                model=self._model, input=list(texts), encoding_format="float", extra_headers=self._endpoint.headers
            )
            return vectors_of(told, len(texts))
        except _FAILURES as error:
            problem = error
        raise failure(self.name, problem, self._endpoint.redactor(), begun=False)

    async def close(self) -> None:
        """Close nothing: its connections are the endpoint's."""

    async def _send(self, messages: Sequence[Message], options: ChatOptions, *, stream: bool = False) -> Any:
        limit_key = self._limit_key  # another call may change it before this one is answered
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            limit_key: options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop) or None,
            "seed": options.seed,
        }
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        given = {key: value for key, value in asked.items() if value is not None}
        try:
            return await self._endpoint.completions.create(**given, extra_headers=self._endpoint.headers)
        except openai.BadRequestError as error:
            # Some models know the limit by its newer name alone, and many servers only by the older one.
            if error.param != "max_tokens" or limit_key != "max_tokens":
                raise
        self._limit_key = "max_completion_tokens"
        # Not sent from here: the next request has to wait for the limits like any other.
        raise MemberError(
            f"{self.name}: its server takes no max_tokens.",
            reason="status",
            retryable=True,
            retry_after_s=0.0,
            usage=Usage(),
            reworded=True,
        )


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode("utf-8", "replace")) for message in messages)


class _Arriving:
    """An answer on its way. begun: something of it came."""

    def __init__(self, redactor: Redactor, on_text: OnText | None) -> None:
        self._redactor, self._on_text = redactor, on_text
        self._texts: list[str] = []
        self._usage = Usage()
        self._reason: str | None = None
        self.begun = False

    def add(self, piece: Piece) -> str:
        """Add a piece, and give its text as it may be passed on."""
        self.begun = True
        text = self._redactor.piece(piece.text)
        self._texts.append(text)
        self._usage = piece.usage or self._usage
        self._reason = piece.finish_reason or self._reason
        return text

    async def hear(self, piece: Piece) -> None:
        """Add it and pass it on."""
        await self._pass_on(self.add(piece))

    async def finish(self, name: str) -> Reply:
        """Make the answer; raise MemberError or WireError where it is none."""
        # A whole answer without a reason has ended all the same; a stream without one has broken off.
        if self._on_text is not None and not self.begun:
            raise WireError
        if self._on_text is not None and self._reason is None:
            raise MemberError(f"{name}: the stream broke off.", reason="truncated", retryable=True)
        if self._reason == "content_filter":
            raise self._failed(f"{name}: a content filter of the server cut the answer off.", "truncated")
        rest = self._redactor.rest()
        self._texts.append(rest)
        await self._pass_on(rest)
        text = "".join(self._texts)
        if not text.strip():
            cut = " before its first word: max_tokens is too small" if self._reason == "length" else ""
            raise self._failed(f"{name} gave an empty answer{cut}.", "empty")
        reason: FinishReason = "length" if self._reason == "length" else "stop"
        return Reply(text=text, usage=self._usage, finish_reason=reason)

    def _failed(self, text: str, reason: Reason) -> MemberError:
        return MemberError(text, reason=reason, usage=self._usage if self._usage.total_tokens else None)

    async def _pass_on(self, text: str) -> None:
        if text and self._on_text is not None:
            await self._on_text(text)
