"""Tokenizers: the one that lies beside a model, or bytes."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from moekit.config import BYTE_VOCAB_SIZE
from moekit.core.errors import MoekitError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

TOKENIZER = "tokenizer.json"

SEPARATOR = 0
"""The byte before each document; text itself never holds it."""


class Tokenizer(Protocol):
    """A tokenizer as evaluation and training need it.

    Attributes:
        start: the token that stands before a text, None where there is none.
        vocab_size: the number of its tokens.
    """

    start: int | None
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Encode a text to ids, without start or end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to a text; bytes that are no UTF-8 become replacement characters."""
        ...


class ByteTokenizer:
    """Takes every byte as a token; texts start after a separator, byte 0, as moekit's own models are trained."""

    vocab_size = BYTE_VOCAB_SIZE

    def __init__(self, start: int = SEPARATOR) -> None:
        self.start: int | None = start

    def encode(self, text: str) -> list[int]:
        """Encode a text to its bytes."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Decode bytes to a text."""
        return bytes(id_ for id_ in ids if id_ < BYTE_VOCAB_SIZE).decode("utf-8", errors="replace")


class FileTokenizer:
    """The tokenizer.json of a folder, by Hugging Face's `tokenizers`.

    Attributes:
        start: config.json's bos_token_id, or its eos_token_id where there is no other, as GPT-2's texts are told apart.
        special_tokens: ids by the texts of special tokens.

    Raises:
        MoekitError: where the file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Rust

        file = folder / TOKENIZER
        try:
            self._rust = Rust.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for whatever is wrong with a file
            raise MoekitError(f"{file} is not a tokenizer: {' '.join(str(error).split())}") from error
        self._rust.no_truncation()
        self._rust.no_padding()
        self.vocab_size = self._rust.get_vocab_size()
        self.start = _start(folder)
        added = self._rust.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {token.content: id_ for id_, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        """Encode a text to ids."""
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text with the special tokens that the file's post-processor puts around it."""
        return list(self._rust.encode(text, add_special_tokens=True).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text in which nothing is a special token."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _plain(self) -> "Rust":
        """A second tokenizer: the switch is the tokenizer's own, and others may be encoding with the first."""
        plain = type(self._rust).from_str(self._rust.to_str())
        plain.encode_special_tokens = True
        return plain

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to a text."""
        return str(self._rust.decode(list(ids)))


def tokenizer_of(folder: Path | None, vocab_size: int) -> Tokenizer:
    """Load the tokenizer for a model of `vocab_size` tokens that came from `folder`.

    A model of 256 tokens without a file reads bytes.

    Raises:
        UsageError: where there is no tokenizer, or where its ids would not all be tokens of the model.
    """
    if folder is not None and (folder / TOKENIZER).is_file():
        tokenizer = FileTokenizer(folder)
        if tokenizer.vocab_size > vocab_size:
            raise UsageError(
                f"{folder / TOKENIZER} has {tokenizer.vocab_size:,} tokens, and the model beside it {vocab_size:,}."
            )
        return tokenizer
    if vocab_size == BYTE_VOCAB_SIZE:
        return ByteTokenizer()
    where = f"{folder} has" if folder else "The model has"
    raise UsageError(
        f"{where} no {TOKENIZER}, and {vocab_size:,} tokens are not bytes; convert its tokenizer with "
        "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)."
    )


def _start(folder: Path) -> int | None:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for key in ("bos_token_id", "eos_token_id"):
        value = values.get(key) if isinstance(values, dict) else None
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
