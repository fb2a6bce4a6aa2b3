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
    "garbage",
    "truncated",
    "empty",
    "limit",
    "budget",
    "context",
    "not cached",
]


class MemberError(MoekitError):
    """A call that gave no answer.

    retryable: another attempt may succeed. retry_after_s: not before then, seconds. usage: what the attempt cost all
    the same; None where nobody knows, so that what was reserved for it stays reserved; `Usage()` where it cost nothing.
    reworded: the member asks the same in another form from now on, so that the next attempt counts as no retry; no call
    meets that twice. The text never holds a key.
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
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.usage = usage
        self.reworded = reworded


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
        """What holds where a call's options say nothing; its max_tokens is never None."""
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
        """Estimate how many they are, rather too many; exact for local models. Requests are cut to fit by this."""
        ...

    async def complete(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> Reply:
        """Attempt an answer once, as long as it takes: the caller's clock ends it by cancelling.

        options: with the defaults filled in. A usage of no tokens says that nobody told it. Raises MemberError.
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
