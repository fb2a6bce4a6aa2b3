"""What can be served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message, OnText, Reply


class PromptTooLong(UsageError):
    """The conversation, or it and the answer that was asked for, are more than the model's context."""


class ConversationRefused(UsageError):
    """The conversation is none that the model answers: its chat template refuses the order of the roles, say."""


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """An answer, and what its maker tells beside it.

    Attributes:
        extra: JSON that stands under the key `moekit` of the response; None for nothing.
    """

    reply: Reply
    extra: Mapping[str, Any] | None = None


class ChatModel(Protocol):
    """Answers conversations, several at a time."""

    async def chat(self, messages: Sequence[Message], options: ChatOptions, on_text: OnText | None = None) -> ChatReply:
        """Answer the conversation. The call is cancelled where the client goes away.

        Args:
            messages: the conversation, which ends with what is to be answered.
            options: how the answer is sampled.
            on_text: gets the answer's pieces, all of them before this returns.

        Raises:
            PromptTooLong: where the conversation does not fit into the model's context.
            ConversationRefused: where the model answers no such conversation.
            UsageError: for anything else that nobody could answer.
            MoekitError: where answering failed.
        """
