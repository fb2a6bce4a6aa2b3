"""What all members can do, and how they fail."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from moekit.agents.config.agents_config import PriceConfig
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

Reason = Literal[
    "timeout",
    "unreachable",
    "status",
    "refused",
    "garbage",
    "truncated",
    "empty",
    "limit",
    "budget",
    "context",
    "not cached",
]


class MemberError(MoekitError):
    """A call that gave no answer. The text never holds a key.

    Attributes:
        reason: its kind; `refused` where what was asked cannot be answered, by whomever it was asked.
        retryable: another attempt may succeed.
        retry_after_s: not before then, seconds.
        usage: what the attempt cost all the same; None where nobody knows, so that what was reserved for it stays
            reserved; `Usage()` where it cost nothing.
        reworded: the member asks the same in another form from now on, so that the next attempt counts as no retry; no
            call meets that more often than there are forms.
        reply: what was answered all the same, where too little of it is why the call failed.
    """

    def __init__(
        self,
        text: str,
        *,
        reason: Reason,
        retryable: bool = False,
        retry_after_s: float | None = None,
        usage: Usage | None = None,
        reworded: bool = False,
        reply: Reply | None = None,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.usage = usage
        self.reworded = reworded
        self.reply = reply


class Member(Protocol):
    """A complete model. Only `Session` calls it: a call past the session would be neither counted nor bounded."""

    @property
    def name(self) -> str:
        """The name in the configuration."""
        ...

    @property
    def identity(self) -> str:
        """What answers, the same in every run: address and model, or folder; part of the cache's key."""
        ...

    @property
    def context(self) -> int | None:
        """The most tokens of prompt and answer together; None where unknown."""
        ...

    @property
    def defaults(self) -> ChatOptions:
        """What holds where a call's options say nothing."""
        ...

    @property
    def price(self) -> PriceConfig | None:
        """What a million tokens cost; None where nobody says."""
        ...

    @property
    def counts_slowly(self) -> bool:
        """Whether counting tokens can take so long that it must not be done in the event loop; threads may then."""
        ...

    def bound_tokens(self, messages: Sequence[Message]) -> int:
        """Bound from above the tokens that the messages make as a prompt; exact for local models."""
        ...

    def estimated_tokens(self, messages: Sequence[Message]) -> int:
        """Estimate the prompt's tokens, rather too many; exact for local models. Requests are cut to fit by this."""
        ...

    async def complete(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> Reply:
        """Attempt an answer once, as long as it takes: the caller's clock ends it by cancelling.

        Args:
            messages: the conversation, which ends with what is to be answered.
            options: how the answer is sampled, with the defaults filled in.
            on_text: gets the pieces of the answer as they come, and an empty one where the member is at work on it and
                has nothing to say yet: reads the prompt, reasons.

        Returns:
            The answer; its usage is of no tokens where nobody told it.

        Raises:
            MemberError: where there is no answer.
        """
        ...

    async def close(self) -> None:
        """Give back connections and memory."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A member that can say how probable an answer is; `Session.score` calls it."""

    async def score(self, messages: Sequence[Message], answer: str) -> tuple[float, Usage]:
        """Compute the log probability in nats of the answer's tokens, given the messages; and what that cost."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A member that turns texts into vectors; `Session.embed` calls it."""

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], Usage]:
        """Compute a vector a text, and tell what that cost."""
        ...


def cut_off_text(name: str, limit: int | None, written: int) -> str:
    """Say that an answer of `name` ended because it was too long.

    Args:
        name: of the member.
        limit: the most tokens that were asked for; None for no limit.
        written: how many it has; 0 where nobody told.
    """
    if limit is not None and (not written or written >= limit):
        return f"{name}: the answer was cut off at max_tokens, {limit:,}."
    after = f" after {written:,} tokens" if written else ""
    return f"{name}: the answer was cut off{after}, where its context is full or its server has a limit."
