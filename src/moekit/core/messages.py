"""Messages of a conversation and a model's reply, whoever computes it: the types that `agents/` and `serve/` share."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter"]

OnText = Callable[[str], Awaitable[None]]
"""Gets an answer piece by piece, as it is made; the pieces together are the answer's text."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How an answer is sampled; None leaves an option to whoever answers.

    Attributes:
        max_tokens: the most tokens of the answer.
        template_variables: variables of the model's chat template, such as `enable_thinking`.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens read and written. Usages can be added."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens read and written together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Self) -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer.

    Attributes:
        finish_reason: `length` where it was cut off by max_tokens, the context or a deadline, `content_filter` where a
            filter of the server cut it off.
        incomplete: why something of the answer is missing, or may be, one sentence; None where it is whole.
    """

    text: str
    usage: Usage
    finish_reason: FinishReason
    incomplete: str | None = None
