"""What can be served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message, OnText, Reply


class PromptTooLong(UsageError):
    """The conversation, or it and the answer that was asked for, are more than the model's context."""


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """An answer, and what its maker wants to tell beside it: JSON, under the key `moekit` of the response."""

    reply: Reply
    extra: Mapping[str, Any] | None = None


class ChatModel(Protocol):
    """Answers conversations, several at a time."""

    async def chat(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> ChatReply:
        """The answer to `messages`; `on_text` gets its pieces, all of them before this returns.

        It is cancelled where the client goes away. Raises UsageError for what cannot be answered, whoever tries
        (PromptTooLong, so that programs can tell), and MoekitError where it failed.
        """
