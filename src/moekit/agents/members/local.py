"""A model in this process: a folder, a GGUF file or a hub id, asked from the event loop and computed in a thread."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from moekit.agents.config.agents_config import PriceConfig
from moekit.agents.members.member import MemberError, Reason, cut_off_text
from moekit.core.errors import MoekitError, UsageError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage
from moekit.inference import Cache, Completion, GenerationOptions, LoadedModel, Runner, SamplingOptions, complete
from moekit.inference.generation import PrefixCache
from moekit.inference.probabilities import log_softmax
from moekit.inference.prompt_tokens import PromptTokenizer
from moekit.inference.runner import OnTokens
from moekit.kernels.packed import Numbers

Result = TypeVar("Result")
Embed = Callable[[Sequence[list[int]]], list[list[float]]]
"""From the ids of texts to a vector for each."""

_PromptKey = tuple[tuple[Message, ...], str]

_TEMPERATURE = 0.7
_ENCODED = 64
"""Prompts whose ids are remembered: how many they are is asked for just before the call."""


class LocalMember:
    """A loaded model as a member, which computes its calls one after the other, in the order in which they came.

    name: as in the configuration. identity: part of the key under which answers are cached, another one for another
    model. defaults: what holds where a call says nothing; where they leave the temperature out, the model's files say
    how it is sampled, or else it is 0.7. embed: how it makes vectors, None: it makes none.

    With a chat template it gets the messages in the form that the template says; if that takes no system message, what
    it says stands before the first of the user's. A model without a template continues texts: its prompt is the
    messages' contents with a blank line between them, and their roles are lost. What a prompt has in common with the
    one before it is not computed again, so that the last digits of a probability, and once in a while what is drawn
    with the same seed, depend on what was asked before.
    """

    counts_slowly = True  # a template may take seconds, and what fits is found by trying

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        *,
        identity: str,
        defaults: ChatOptions,
        price: PriceConfig | None = None,
        embed: Embed | None = None,
    ) -> None:
        self.name, self.model, self.identity = name, model, identity
        self.defaults, self.price = defaults, price
        self.context: int | None = model.runner.context
        self._embed = embed
        self._prefix_cache = PrefixCache(model.runner.new_cache())
        # One thread computes, so that those who wait for it take none.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"moekit-{name}")
        self._under_way: set[threading.Event] = set()
        self._waiting: set[Callable[[], None]] = set()
        self._encoded: dict[_PromptKey, list[int]] = {}
        self._remembering = threading.Lock()
        self._closed = False
        if model.chat_template is not None:
            model.chat_template.start()

    def bound_tokens(self, messages: Sequence[Message]) -> int:
        """Count the tokens of the prompt. Raises MemberError where the chat template fails."""
        return len(self._ids(messages, {}))

    def estimated_tokens(self, messages: Sequence[Message]) -> int:
        """Count the tokens of the prompt; nothing needs to be estimated. Raises MemberError as `bound_tokens` does."""
        return self.bound_tokens(messages)

    async def complete(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> Reply:
        """Answer the messages. Cancelling ends it between two tokens, and between two chunks of a prompt.

        on_text: gets the text as it is made, and an empty piece for whatever the model computes meanwhile: its prompt,
        or a call that came before. Raises MemberError where the prompt does not fit, an option is out of bounds, the
        model fails or says nothing.
        """
        ids = await self._prompt(messages, options.template_variables, room=1)
        generation = self._options(options)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def say(_: int, piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def sign() -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, "")

        def work(runner: Runner) -> Completion:
            heard = None if on_text is None else say
            prefix_caches = [self._prefix_cache]
            (found,) = complete(runner, self.model.tokenizer, [ids], generation, heard, prefix_caches=prefix_caches)
            return found

        async def pass_on(future: asyncio.Future[Completion]) -> None:
            # Comes after the last piece, whatever ends the work.
            future.add_done_callback(lambda _: pieces.put_nowait(None))
            while on_text is not None and (piece := await pieces.get()) is not None:
                await on_text(piece)

        if on_text is not None:
            self._waiting.add(sign)
        try:
            found = await self._compute(work, pass_on)
        finally:
            self._waiting.discard(sign)
        usage = Usage(prompt_tokens=found.prompt_tokens, completion_tokens=found.completion_tokens)
        reply = Reply(text=found.text, usage=usage, finish_reason=found.finish_reason)
        if not found.text.strip():
            raise self._error("the answer is empty", "empty", usage, reply)
        if found.finish_reason == "length":
            return replace(reply, incomplete=cut_off_text(self.name, generation.max_tokens, found.completion_tokens))
        return reply

    async def score(self, messages: Sequence[Message], answer: str) -> tuple[float, Usage]:
        """Compute the log probability in nats of the answer's tokens after the messages; and how many tokens all are.

        Without messages: of a text, of whose tokens the first one is not counted where the tokenizer has no start. The
        end of the answer is not part of it. Raises MemberError where both together are more than the context.
        """
        answer_ids = await asyncio.to_thread(self._text_ids, answer)
        if messages:
            ids = await self._prompt(messages, {}, room=len(answer_ids))
        else:
            start = self.model.tokenizer.start
            ids, answer_ids = ([start], answer_ids) if start is not None else (answer_ids[:1], answer_ids[1:])
            self._check_room(len(ids) + len(answer_ids))
        usage = Usage(prompt_tokens=len(ids) + len(answer_ids))
        nats = await self._compute(lambda runner: _log_prob(runner, ids, answer_ids)) if answer_ids else 0.0
        return nats, usage

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], Usage]:
        """Average the last layer's normed hidden states over each text's tokens, the first that the context holds.

        Raises MemberError where the member makes no vectors.
        """
        embed = self._embed
        if embed is None:
            raise self._error("it makes no vectors", "refused")
        context = self.model.runner.context
        ids = await asyncio.to_thread(lambda: [self._start_and(text)[:context] for text in texts])
        vectors = await self._compute(lambda _: embed(ids))
        return vectors, Usage(prompt_tokens=sum(map(len, ids)))

    async def close(self) -> None:
        """End what is under way; the memory goes when the last one forgets the member."""
        self._closed = True
        for stop in self._under_way:
            stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compute(
        self,
        work: Callable[[Runner], Result],
        meanwhile: Callable[["asyncio.Future[Result]"], Awaitable[None]] | None = None,
    ) -> Result:
        """Wait for what the thread makes of the runner; who is cancelled here ends its work at the next token."""
        stop = threading.Event()
        runner = _Stoppable(self.model.runner, stop, self._show_work)
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._failing_as_a_member, work, runner)
        self._under_way.add(stop)
        try:
            if meanwhile is not None:
                await meanwhile(future)
            return await future
        except _Stopped as error:
            raise self._error("it was closed", "unreachable") from error
        except MemberError:
            raise
        except UsageError as error:
            raise self._error(str(error), "refused") from error
        except MoekitError as error:
            raise self._error(str(error), "garbage") from error
        finally:
            stop.set()
            future.cancel()
            self._under_way.discard(stop)

    def _show_work(self) -> None:
        """Tell all who wait for an answer that the model is at work, if only for one of them."""
        for sign in tuple(self._waiting):
            sign()

    def _failing_as_a_member(self, work: Callable[[Runner], Result], runner: Runner) -> Result:
        """Do the work, with errors of a member. A model that runs out of memory, say, is one member that fails."""
        try:
            return work(runner)
        except (RuntimeError, MemoryError) as error:
            told = str(error).partition("\n")[0] or "out of memory"
            raise self._error(f"the model failed: {told}", "garbage") from error

    async def _prompt(self, messages: Sequence[Message], variables: Mapping[str, Any], room: int) -> list[int]:
        """Encode the prompt, whose ids leave `room` in the context."""
        ids = self._encoded.get(_prompt_key(messages, variables))
        if ids is None:
            ids = await asyncio.to_thread(self._ids, messages, variables)
        if not ids:
            raise self._error("the prompt is empty", "refused")
        self._check_room(len(ids) + room)
        return ids

    def _check_room(self, tokens: int) -> None:
        if tokens > self.model.runner.context:
            raise self._error(
                f"{tokens:,} tokens are more than its context of {self.model.runner.context:,}", "context"
            )

    def _ids(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        """Encode the prompt, or remember its ids; several threads may ask for some."""
        key = _prompt_key(messages, variables)
        if (found := self._encoded.get(key)) is not None:
            return found
        if self._closed:  # whoever is still trying what fits in a thread would hold up the end of the process
            raise self._error("it was closed", "unreachable")
        found = self._encode(messages, variables)
        with self._remembering:
            if len(self._encoded) >= _ENCODED:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = found
        return found

    def _encode(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        tokenizer, template = self.model.tokenizer, self.model.chat_template
        try:
            if template is None:
                return self._plain("\n\n".join(message.content for message in messages))
            said = [{"role": message.role, "content": _unicode(message.content)} for message in messages]
            return template.encode(said, tokenizer, variables)
        except UsageError as error:
            raise self._error(str(error), "refused") from error
        except MoekitError as error:
            raise self._error(str(error), "garbage") from error

    def _plain(self, text: str) -> list[int]:
        """Encode what the tokenizer puts before a prompt, and the text."""
        if not text or not isinstance(self.model.tokenizer, PromptTokenizer):
            return self._start_and(text) if text else []
        return [*self.model.tokenizer.encode_prompt(""), *self._text_ids(text)]

    def _text_ids(self, text: str) -> list[int]:
        """Encode a text in which nothing is a special token."""
        tokenizer, text = self.model.tokenizer, _unicode(text)
        return tokenizer.encode_plain(text) if isinstance(tokenizer, PromptTokenizer) else tokenizer.encode(text)

    def _start_and(self, text: str) -> list[int]:
        start = self.model.tokenizer.start
        return [*([] if start is None else [start]), *self._text_ids(text)]

    def _options(self, options: ChatOptions) -> GenerationOptions:
        told: dict[str, Any] = {"temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}
        given = {name: value for name, value in told.items() if value is not None}
        own = self.model.sampling.options if options.temperature is None else {}
        try:
            return GenerationOptions(
                max_tokens=options.max_tokens,
                stop=options.stop,
                end_tokens=self.model.end_tokens,
                sampling=SamplingOptions(**{"temperature": _TEMPERATURE, **own, **given}),
            )
        except UsageError as error:
            raise self._error(str(error), "refused") from error

    def _error(self, text: str, reason: Reason, usage: Usage | None = None, reply: Reply | None = None) -> MemberError:
        return MemberError(f"{self.name}: {text.rstrip('.')}.", reason=reason, usage=usage or Usage(), reply=reply)


class LockedRunner:
    """A runner that several threads may use: one at a time computes, for a token or a prompt."""

    def __init__(self, runner: Runner) -> None:
        self.vocab_size, self.context = runner.vocab_size, runner.context
        self._runner, self.lock = runner, threading.Lock()

    def new_cache(self) -> Cache:
        """Make an empty cache."""
        return self._runner.new_cache()

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        """Compute logits_V after the last of tokens_T."""
        with self.lock:
            return self._runner.prefill(cache, tokens_T, on_tokens)

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        """Compute logits_BV after one more token of each sequence."""
        with self.lock:
            return self._runner.decode(caches, tokens_B)


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


class _Stoppable:
    """A runner that computes until it is told to stop, and shows that it does."""

    def __init__(self, runner: Runner, stop: threading.Event, show_work: Callable[[], None]) -> None:
        self.vocab_size, self.context = runner.vocab_size, runner.context
        self._runner, self._stop, self._show_work = runner, stop, show_work

    def new_cache(self) -> Cache:
        return self._runner.new_cache()

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        self._check()

        def computed(count: int) -> None:
            if on_tokens is not None:
                on_tokens(count)
            self._check()

        return self._runner.prefill(cache, tokens_T, computed)

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        self._check()
        return self._runner.decode(caches, tokens_B)

    def _check(self) -> None:
        self._show_work()
        if self._stop.is_set():
            raise _Stopped


def _unicode(text: str) -> str:
    """Take out of a text halves of surrogate pairs, which JSON can hold and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _prompt_key(messages: Sequence[Message], variables: Mapping[str, Any]) -> _PromptKey:
    return tuple(messages), json.dumps(dict(variables), sort_keys=True)


def _log_prob(runner: Runner, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Compute the nats of the answer's tokens (at least one) after the prompt's (at least one), one step each."""
    cache = runner.new_cache()
    logits_V = runner.prefill(cache, prompt)
    total = 0.0
    for place, token in enumerate(answer):
        if place:
            logits_V = runner.decode([cache], [answer[place - 1]])[0]
        total += float(log_softmax(logits_V)[token])
    return total
