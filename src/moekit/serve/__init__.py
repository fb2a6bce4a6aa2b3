"""Models over HTTP, in the OpenAI protocol: whoever answers as a `ChatModel` says can be served under a name."""

from moekit.serve.protocol import ChatModel, ChatReply, ConversationRefused, PromptTooLong

__all__ = ["ChatModel", "ChatReply", "ConversationRefused", "PromptTooLong"]
