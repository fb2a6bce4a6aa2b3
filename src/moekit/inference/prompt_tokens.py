"""Tokens of prompts: from prompts and conversations to the ids that a model reads.

What a tokenizer has beyond `data.tokenizers.Tokenizer`, it offers as `PromptTokenizer`; without it, a prompt is the
start token and the text's ids, and special tokens that a user writes out become special.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from moekit.core.errors import UsageError
from moekit.data.tokenizers import Tokenizer

Prompt = str | Sequence[int]


@runtime_checkable
class PromptTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows its special tokens, and which of them stand around a prompt."""

    special_tokens: Mapping[str, int]

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text with the special tokens that the tokenizer puts around it."""
        ...


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Encode a prompt to ids; raise UsageError where its text cannot be written in UTF-8."""
    if not isinstance(prompt, str):
        return list(prompt)
    if not prompt:
        return []
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The prompt is not valid Unicode: {error.reason}.") from error
    if isinstance(tokenizer, PromptTokenizer):
        return tokenizer.encode_prompt(prompt)
    return ([] if tokenizer.start is None else [tokenizer.start]) + tokenizer.encode(prompt)
