"""A conversation with a model: its messages, and the cache that saves computing them again at every turn."""

from collections.abc import Callable, Mapping
from typing import Any

from moekit.core.errors import UsageError
from moekit.inference.generation import Completion, GenerationOptions, PrefixCache, complete
from moekit.inference.loaded_model import LoadedModel
from moekit.inference.runner import OnTokens


class Conversation:
    """Messages to and from a model with a chat template.

    Args:
        model: the model, ready to generate.
        options: how answers are generated.
        system: a message of that role that every conversation starts with; None for none.
        variables: further variables of the chat template, such as `enable_thinking`.

    Raises:
        UsageError: where the model has no chat template, or its template does not name one of the variables.
    """

    def __init__(
        self,
        model: LoadedModel,
        options: GenerationOptions,
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        if model.chat_template is None:
            raise UsageError("The model has no chat template; `moekit generate` continues texts with it.")
        self._model, self._template, self._options = model, model.chat_template, options
        self._variables = dict(variables or {})
        if unknown := [name for name in self._variables if not self._template.names(name)]:
            raise UsageError(f"The chat template has no variable {unknown[0]!r}.")
        self._template.start()
        self._prefix_cache = PrefixCache(model.runner.new_cache())
        self._opening: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._opening)

    def reset(self) -> None:
        """Forget everything but the system's message."""
        self.messages = list(self._opening)

    def answer(self, text: str, on_text: Callable[[str], None], on_tokens: OnTokens | None = None) -> Completion:
        """Answer a user's message; both are then part of the conversation.

        An answer that KeyboardInterrupt breaks off stays as far as it got. What fails otherwise, such as a message that
        the context has no room for, leaves the conversation as it was, and so does an answer without a word.

        Args:
            text: the user's message.
            on_text: gets the answer piece by piece.
            on_tokens: gets the numbers of prompt tokens as they are computed.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []

        def say(_: int, piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        try:
            (completion,) = complete(
                self._model.runner,
                self._model.tokenizer,
                [self._template.encode(asked, self._model.tokenizer, self._variables)],
                self._options,
                say,
                prefix_caches=[self._prefix_cache],
                on_tokens=on_tokens,
            )
        except KeyboardInterrupt:
            if pieces:
                self._said(asked, pieces)
            raise
        self._said(asked, pieces)
        return completion

    def _said(self, asked: list[dict[str, Any]], pieces: list[str]) -> None:
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
