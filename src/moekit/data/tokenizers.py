"""Tokenizers: the one that lies beside a model, or bytes."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moekit.config import BYTE_VOCAB_SIZE
from moekit.core.errors import MoekitError
from moekit.data.tokenizer_files import ids_of, read_object, read_tokenizer_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

TOKENIZER = "tokenizer.json"
_GENERATION = "generation_config.json"

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

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text in which nothing is a special token."""
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

    encode_plain = encode

    def decode(self, ids: Sequence[int]) -> str:
        """Decode bytes to a text."""
        return bytes(id_ for id_ in ids if id_ < BYTE_VOCAB_SIZE).decode("utf-8", errors="replace")


class FileTokenizer:
    """The tokenizer.json of a folder, by Hugging Face's `tokenizers`, with the tokens that the files beside it add.

    Args:
        folder: where it lies.
        most: the tokens that the model has; the files beside it add none beyond them. None for any number.

    Attributes:
        start: config.json's bos_token_id, else the tokenizer's bos_token, else config.json's eos_token_id, as GPT-2's
            texts are told apart, or the tokenizer's eos_token.
        special_tokens: ids by the texts of special tokens.
        special_texts: the texts of `bos_token` and others, by the names that chat templates know them by.
        end_tokens: the ids that end a text or an answer: those of generation_config.json, else of config.json, and the
            tokenizer's eos_token.

    Raises:
        MoekitError: where a file cannot be read.
    """

    def __init__(self, folder: Path, most: int | None = None) -> None:
        from tokenizers import Tokenizer as Rust

        self.file = folder / TOKENIZER
        try:
            self._rust = Rust.from_file(str(self.file))
        except Exception as error:  # the library raises bare Exception for whatever is wrong with a file
            raise MoekitError(f"{self.file} is not a tokenizer: {' '.join(str(error).split())}") from error
        self._rust.no_truncation()
        self._rust.no_padding()
        settings = read_tokenizer_settings(folder)
        for token in settings.added:
            if most is None or self._rust.token_to_id(token.content) is not None or self._rust.get_vocab_size() < most:
                self._rust.add_tokens([token])
        self.vocab_size = self._rust.get_vocab_size()
        self.special_texts = settings.named
        added = self._rust.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {token.content: id_ for id_, token in added.items() if token.special}
        config = read_object(folder / "config.json")
        self.start = next(iter(self._ids(config, "bos_token") + self._ids(config, "eos_token")), None)
        ends = [ids_of(settings.get("eos_token_id")) for settings in (read_object(folder / _GENERATION), config)]
        self.end_tokens = frozenset([*next(filter(None, ends), []), *self._ids({}, "eos_token")])

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

    def described(self) -> dict[str, Any]:
        """Give the tokenizer.json, with the tokens that the files beside it add."""
        return self._described

    @cached_property
    def _described(self) -> dict[str, Any]:
        """The description, made once: of 150,000 tokens it takes a second."""
        described: dict[str, Any] = json.loads(self._rust.to_str())
        return described

    def _ids(self, config: Mapping[str, Any], name: str) -> list[int]:
        """Find the ids of a special token: what config.json says, then the tokenizer's own settings."""
        word = self.special_texts.get(name)
        own = None if word is None else self._rust.token_to_id(word)
        return ids_of(config.get(f"{name}_id")) + ids_of(own)
