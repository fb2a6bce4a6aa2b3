"""Generation on any runner: the sequences of a batch are decoded together, each until its own end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moekit.core.errors import UsageError
from moekit.data.tokenizers import Tokenizer
from moekit.inference.prompt_tokens import Prompt, PromptTokenizer, prompt_ids
from moekit.inference.runner import Cache, OnTokens, Runner
from moekit.inference.sampling import Sampler, SamplingOptions
from moekit.inference.stop import StopStrings
from moekit.inference.stream_text import TextStream
from moekit.kernels.packed import Numbers

OnText = Callable[[int, str], None]
"""Called with the number of a prompt and a further piece of its completion, which is valid Unicode."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How long a completion may get, and what ends it.

    Attributes:
        max_tokens: the most tokens of the completion; None for what the context leaves.
        stop: strings that end it and are not part of it; they may hold special tokens.
        end_tokens: ids that end it, likewise.
        sampling: how tokens are sampled.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    end_tokens: frozenset[int] = frozenset()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The text that followed a prompt, and figures.

    Attributes:
        prompt_tokens: the tokens of the prompt, with the one that starts a text.
        completion_tokens: the tokens that were sampled, with one that ended it.
        finish_reason: `stop` at an end token or stop string, `length` at max_tokens or the end of the context.
        prefill_tokens_per_second: the speed over the tokens of the prompt that no cache held.
        decode_tokens_per_second: the speed over the tokens after the first, None where there are none.
        time_to_first_token_s: seconds from the call.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    time_to_first_token_s: float


class PrefixCache:
    """A KV cache and the tokens that it holds, so that the next prompt that begins with them goes on from there.

    The tokens are what counts: an interrupted step may leave more in the cache, which is then cut back.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.tokens: list[int] = []

    def keep(self, prompt: Sequence[int]) -> int:
        """Cut back to the beginning shared with the prompt, less its last token, which has to be computed again.

        Returns:
            The number of tokens kept.
        """
        shared = 0
        for ours, theirs in zip(self.tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        self.cache.truncate(shared)
        del self.tokens[shared:]
        return shared


def complete(
    runner: Runner,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    options: GenerationOptions | None = None,
    on_text: OnText | None = None,
    *,
    prefix_caches: Sequence[PrefixCache] | None = None,
    on_tokens: OnTokens | None = None,
) -> list[Completion]:
    """Generate a completion for each prompt: a text, or ids that are taken as they are.

    Args:
        runner: what computes the model.
        tokenizer: the model's.
        prompts: the texts or ids to continue.
        options: how long completions may get, and how tokens are sampled.
        on_text: gets each completion's text piece by piece; a stop string, or the beginning of one, is never in it.
        prefix_caches: one for each prompt; what they hold is not computed again, and they hold prompt and completion
            afterwards.
        on_tokens: gets the numbers of prompt tokens as they are computed.

    Raises:
        UsageError: where a prompt is empty or leaves no room in the context.
        MoekitError: where logits are NaN.
    """
    options = options or GenerationOptions()
    if options.max_tokens is not None and options.max_tokens < 1:
        raise UsageError(f"max_tokens must be 1 or more, not {options.max_tokens}.")
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    for number, prompt in enumerate(ids):
        _check(prompt, runner, f"Prompt {number + 1}" if len(ids) > 1 else "The prompt")
    if prefix_caches is None:
        prefix_caches = [PrefixCache(runner.new_cache()) for _ in ids]
    sampler = Sampler(options.sampling, runner.vocab_size, ids)
    begin = time.perf_counter()
    answers = [
        _Answer(number, prompt, prefix_cache, tokenizer, options, runner.context, on_text)
        for number, (prompt, prefix_cache) in enumerate(zip(ids, prefix_caches, strict=True))
    ]
    for answer in answers:
        logits_V = answer.prefill(runner, on_tokens)
        answer.take(sampler.draw(logits_V[None], [answer.number])[0])
        answer.first_token_s = time.perf_counter() - begin
    _decode(runner, sampler, answers)
    return [answer.completion() for answer in answers]


def _decode(runner: Runner, sampler: Sampler, answers: Sequence["_Answer"]) -> None:
    """Decode one token for each unfinished answer at a time, until there are none."""
    begin = time.perf_counter()
    while going := [answer for answer in answers if not answer.finished]:
        logits_BV = runner.decode([answer.prefix_cache.cache for answer in going], [answer.last for answer in going])
        drawn_B = sampler.draw(logits_BV, [answer.number for answer in going])
        seconds = time.perf_counter() - begin
        for answer, token in zip(going, drawn_B, strict=True):
            answer.prefix_cache.tokens.append(answer.last)
            answer.decode_s = seconds
            answer.take(token)


class _Answer:
    """One prompt on its way to a completion."""

    def __init__(
        self,
        number: int,
        prompt: list[int],
        prefix_cache: PrefixCache,
        tokenizer: Tokenizer,
        options: GenerationOptions,
        context: int,
        on_text: OnText | None,
    ) -> None:
        self.number, self.prompt, self.prefix_cache = number, prompt, prefix_cache
        self._options, self._on_text = options, on_text
        room = context - len(prompt)
        self._most = room if options.max_tokens is None else min(room, options.max_tokens)
        self._stream, self._stop = TextStream(tokenizer.encode, tokenizer.decode), StopStrings(options.stop)
        self._special_texts = _special_texts(tokenizer) if options.stop else {}
        self._text: list[str] = []
        self._tokens = 0
        self._finish: Literal["stop", "length"] | None = None
        self._prefill_rate = 0.0
        self.last = -1
        self.decode_s = self.first_token_s = 0.0

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self._finish is not None

    def prefill(self, runner: Runner, on_tokens: OnTokens | None) -> Numbers:
        """Compute logits_V after the prompt."""
        kept = self.prefix_cache.keep(self.prompt)
        begin = time.perf_counter()

        def computed(count: int) -> None:
            held = len(self.prefix_cache.tokens)
            self.prefix_cache.tokens += self.prompt[held : held + count]
            if on_tokens is not None:
                on_tokens(count)

        logits_V = runner.prefill(self.prefix_cache.cache, self.prompt[kept:], computed)
        self._prefill_rate = (len(self.prompt) - kept) / (time.perf_counter() - begin)
        return logits_V

    def take(self, token: int) -> None:
        """Take the next token: it ends the answer, or belongs to it."""
        self.last = token
        self._tokens += 1
        if token in self._options.end_tokens:
            self._end("stop", token)
            return
        self._say(self._stop.push(self._stream.push(token)))
        self._say(self._stop.push(self._special_texts.get(token, ""), shown=False))
        if self._stop.stopped:
            self._finish = "stop"
        elif self._tokens >= self._most:
            self._end("length")

    def completion(self) -> Completion:
        """Make the completion of a finished answer."""
        assert self._finish is not None
        return Completion(
            text="".join(self._text),
            prompt_tokens=len(self.prompt),
            completion_tokens=self._tokens,
            finish_reason=self._finish,
            prefill_tokens_per_second=self._prefill_rate,
            decode_tokens_per_second=(self._tokens - 1) / self.decode_s if self._tokens > 1 else None,
            time_to_first_token_s=self.first_token_s,
        )

    def _end(self, reason: Literal["stop", "length"], end_token: int = -1) -> None:
        """End the answer: what was held back is text after all, unless it holds a stop string."""
        self._say(self._stop.push(self._stream.finish()))
        self._say(self._stop.push(self._special_texts.get(end_token, ""), shown=False))
        self._finish = "stop" if self._stop.stopped else reason
        self._say(self._stop.finish())

    def _say(self, piece: str) -> None:
        if piece:
            self._text.append(piece)
            if self._on_text is not None:
                self._on_text(self.number, piece)


def _special_texts(tokenizer: Tokenizer) -> dict[int, str]:
    """Find the texts of special tokens, which decoding leaves out, by their ids."""
    if not isinstance(tokenizer, PromptTokenizer):
        return {}
    return {id_: text for text, id_ in tokenizer.special_tokens.items()}


def _check(prompt: list[int], runner: Runner, name: str) -> None:
    """Raise UsageError where the prompt cannot be continued."""
    if not prompt:
        raise UsageError(f"{name} is empty.")
    if len(prompt) >= runner.context:
        raise UsageError(
            f"{name} has {len(prompt):,} tokens, and the context of {runner.context:,} leaves no room for an answer."
        )
    beyond = next((id_ for id_ in prompt if not 0 <= id_ < runner.vocab_size), None)
    if beyond is not None:
        raise UsageError(f"{name} has token {beyond}, and the model has {runner.vocab_size:,}, counted from 0.")
