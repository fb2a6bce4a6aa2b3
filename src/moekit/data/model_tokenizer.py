"""The tokenizer that a model came with: of its folder, of its GGUF file, or bytes."""

from pathlib import Path

from moekit.checkpoint.gguf import GGUFFile, is_gguf
from moekit.config import BYTE_VOCAB_SIZE
from moekit.core.errors import UsageError
from moekit.data.gguf_tokenizer import gguf_tokenizer
from moekit.data.tokenizers import TOKENIZER, ByteTokenizer, FileTokenizer, Tokenizer


def tokenizer_of(folder: Path | None, vocab_size: int) -> Tokenizer:
    """Load the tokenizer for a model of `vocab_size` tokens that came from `folder`, or from a GGUF file.

    A model of 256 tokens without a file reads bytes.

    Raises:
        UsageError: where there is no tokenizer, or where its ids would not all be tokens of the model.
    """
    if folder is not None and is_gguf(folder):
        return gguf_tokenizer(GGUFFile(folder).metadata, vocab_size)
    if folder is not None and (folder / TOKENIZER).is_file():
        tokenizer = FileTokenizer(folder, vocab_size)
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
