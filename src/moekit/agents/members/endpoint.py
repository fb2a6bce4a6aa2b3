"""A model behind a server that speaks the OpenAI HTTP API. Whatever comes back is read as a stranger's data."""

import asyncio
import json
import re
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai

from moekit.agents.config.agents_config import EndpointConfig, EndpointMemberConfig
from moekit.agents.members.answer_pieces import piece_of, vectors_of, whole_characters
from moekit.agents.members.arriving_answer import ArrivingAnswer
from moekit.agents.members.body_reader import BodyReader
from moekit.agents.members.endpoint_failures import failure, no_answer, told_error
from moekit.agents.members.member import MemberError
from moekit.agents.members.redaction import Redactor
from moekit.agents.members.surroundings import connection_fault, http_client
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

_CHECK_S = 3.0
# A byte-level tokenizer never makes more tokens than bytes; a chat template adds some a message and some a prompt.
_TOKENS_A_MESSAGE = 16
# Prose in any script, code and figures have three bytes a token or more with the tokenizers that are in use.
_LIKELY_BYTES_A_TOKEN = 2
_TOKENS_A_PROMPT = 64
# What the client raises where a request cannot be sent or its answer not be received, and where it cannot be made.
_FAILURES = (openai.OpenAIError, httpx2.RequestError, ssl.SSLError)
_UNSENDABLE = (ValueError, TypeError)
_REFUSALS = (400, 422)
_SHOWN_BYTES = 400


class Endpoint:
    """One server: its connections, and its key, which nothing else holds. key: None: it needs none.

    Raises UsageError where the environment names a proxy or certificates that cannot be used.
    """

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
            http_client=http_client(config.url),
        )
        # The client imports its parts at first use, which would take a quarter of a second of somebody's deadline.
        self.completions = self.client.chat.completions.with_streaming_response
        self.embeddings = self.client.embeddings.with_streaming_response

    def redactor(self) -> Redactor:
        """Make what takes the key out of what one request brings back."""
        return Redactor(self._key)

    async def problem(self) -> str | None:
        """Say what keeps the server from being used, a sentence; None where it answers, whatever it says."""
        try:
            async with asyncio.timeout(_CHECK_S):
                return await self._answered_problem()
        except TimeoutError:
            return f"endpoints.{self.name}.url: nothing answers at {self.url} within {_CHECK_S:g} s."
        except openai.APIConnectionError as error:
            fault = connection_fault(error, self.url, begun=False)
            return f"endpoints.{self.name}.url: {fault.text}."

    async def _answered_problem(self) -> str | None:
        """Say what the server finds wrong with being asked for its models; servers without such a list are fine."""
        try:
            await self._get("models")
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            if self._variable is None:
                return (
                    f"endpoints.{self.name}: {self.url} wants a key; name the variable that holds it in key_variable."
                )
            return f"endpoints.{self.name}: {self.url} refuses the key in {self._variable}."
        except openai.NotFoundError:
            with suppress(openai.OpenAIError, ValueError):
                await self._get("v1/models")
                return f"endpoints.{self.name}.url: there is nothing at {self.url}; did you mean {self.url}/v1?"
        except openai.APIConnectionError:
            raise
        except (openai.OpenAIError, ValueError):
            return None
        return None

    async def _get(self, path: str) -> None:
        await self.client.get(f"/{path}", cast_to=object, options={"headers": self.headers})

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()


@dataclass(frozen=True)
class _Wording:
    """The form of a request: what some servers know by another name alone, or not at all.

    Attributes:
        limit: the name of the most tokens of an answer.
        streams: whether the answer is asked for in pieces, so that one that comes is told from one that does not.
        tells_usage: whether a stream is asked for its usage.
    """

    limit: str = "max_tokens"
    streams: bool = True
    tells_usage: bool = True

    def without(self, refused: str) -> "_Wording":
        """Make the form for a server that refuses this key."""
        other = {
            "max_tokens": replace(self, limit="max_completion_tokens"),
            "stream": replace(self, streams=False),
            "stream_options": replace(self, tells_usage=False),
        }
        return other[refused]

    @property
    def refusable(self) -> tuple[str, ...]:
        """The keys of such a request for which there is another form."""
        known = {
            "stream_options": self.streams and self.tells_usage,
            "stream": self.streams,
            "max_tokens": self.limit == "max_tokens",
        }
        return tuple(key for key, there in known.items() if there)


class EndpointMember:
    """A model of an endpoint; see `Member`."""

    counts_slowly = False

    def __init__(self, name: str, config: EndpointMemberConfig, endpoint: Endpoint) -> None:
        self.name, self.context, self.price = name, config.context, config.price
        self.identity = f"{endpoint.url} {config.model}"
        self.defaults = ChatOptions(temperature=config.temperature, max_tokens=config.max_tokens)
        self._model, self._endpoint = config.model, endpoint
        self._wording = _Wording()

    def bound_tokens(self, messages: Sequence[Message]) -> int:
        """Bound the tokens of the prompt by its bytes, and some for the chat template."""
        return _bytes(messages) + len(messages) * _TOKENS_A_MESSAGE + _TOKENS_A_PROMPT

    def estimated_tokens(self, messages: Sequence[Message]) -> int:
        """Estimate the tokens of the prompt at two bytes each, and some for the chat template.

        The estimate never varies: a replay asks the same.
        """
        return _bytes(messages) // _LIKELY_BYTES_A_TOKEN + len(messages) * _TOKENS_A_MESSAGE + _TOKENS_A_PROMPT

    async def complete(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> Reply:
        """Send one request and read what comes, as it comes. Raises MemberError."""
        answer = ArrivingAnswer(self.name, self._endpoint.redactor(), on_text)
        wording = self._wording  # another call may change it before this one is answered
        problem: Exception
        async with AsyncExitStack() as until_read:
            try:
                sent = self._endpoint.completions.create(**self._request(messages, options, wording))
                response = await until_read.enter_async_context(sent)
            except (*_FAILURES, *_UNSENDABLE) as error:
                problem = self._reworded(error, wording) or error
            else:
                try:
                    await answer.read(response.iter_bytes())
                    return await answer.finish(options.max_tokens)
                except _FAILURES as error:
                    problem = error
        # Not inside the handler: what the server sent must not hang on the error as its cause.
        raise self._failed(problem, begun=answer.begun)

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], Usage]:
        """Compute a vector a text, by the endpoint's /embeddings. Raises MemberError."""
        problem: Exception
        try:
            sent = self._endpoint.embeddings.create(
                model=self._model,
                input=[whole_characters(text) for text in texts],
                encoding_format="float",
                extra_headers=self._endpoint.headers,
            )
            async with sent as response:
                body = await response.read()
            return self._vectors(body, len(texts))
        except (*_FAILURES, *_UNSENDABLE) as error:
            problem = error
        raise self._failed(problem, begun=False)

    async def close(self) -> None:
        """Close nothing: its connections are the endpoint's."""

    def _vectors(self, body: bytes, count: int) -> tuple[list[list[float]], Usage]:
        """Find so many vectors in a body. Raises MemberError where they are not in it."""
        reader, redactor = BodyReader(), self._endpoint.redactor()
        values = [*reader.feed(body), *reader.end()]
        for value in values:
            if (found := vectors_of(value, count)) is not None:
                return found
        if (told := next((error for value in values if (error := piece_of(value).error)), None)) is not None:
            raise told_error(self.name, told, redactor, None)
        raise no_answer(self.name, body[:_SHOWN_BYTES].decode("utf-8", "replace").strip(), redactor, None)

    def _request(self, messages: Sequence[Message], options: ChatOptions, wording: _Wording) -> dict[str, Any]:
        """Make the arguments of a request."""
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": each.role, "content": whole_characters(each.content)} for each in messages],
            wording.limit: options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop) or None,
            "seed": options.seed,
        }
        if wording.streams:
            asked |= {"stream": True, "stream_options": {"include_usage": True} if wording.tells_usage else None}
        if options.template_variables:  # vLLM, SGLang and llama.cpp take them by this name
            asked["extra_body"] = {"chat_template_kwargs": dict(options.template_variables)}
        given = {key: value for key, value in asked.items() if value is not None}
        return given | {"extra_headers": self._endpoint.headers}

    def _reworded(self, error: Exception, wording: _Wording) -> MemberError | None:
        """Choose another form for the requests to come, where this one was refused for a key that has one."""
        refused = _refused_key(error, wording)
        if refused is None:
            return None
        if self._wording == wording:
            self._wording = wording.without(refused)
        # Not sent from here: the next request has to wait for the limits like any other.
        return MemberError(
            f"{self.name}: its server takes no {refused}.",
            reason="refused",
            retryable=True,
            retry_after_s=0.0,
            usage=Usage(),
            reworded=True,
        )

    def _failed(self, problem: Exception, *, begun: bool) -> MemberError:
        endpoint = self._endpoint
        return failure(self.name, problem, endpoint.redactor(), url=endpoint.url, begun=begun)


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode("utf-8", "replace")) for message in messages)


def _refused_key(error: Exception, wording: _Wording) -> str | None:
    """Find the key of a request that a server refuses, of those for which there is another form."""
    if not isinstance(error, openai.APIStatusError) or error.status_code not in _REFUSALS:
        return None
    if isinstance(error.param, str) and error.param:
        key = error.param.partition(".")[0]
        return key if key in wording.refusable else None
    # Many servers name the key in their sentence alone. Not so the limit: it is in sentences about a full context.
    told = json.dumps(error.body)
    named = (key for key in wording.refusable if key != wording.limit)
    return next((key for key in named if re.search(rf"(?i)\b{key}(ing)?\b", told)), None)
