"""A corpus as token ids instead of bytes."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moekit.data.corpus import Corpus, Tokens
from moekit.data.tokenizers import SEPARATOR, ByteTokenizer, Tokenizer


def tokenized(corpus: Corpus, tokenizer: Tokenizer) -> Corpus:
    """Encode each text of a corpus with `tokenizer`, its start token before each document where it has one.

    A special token that a document writes out is text.
    With a ByteTokenizer, the result is the corpus itself.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return corpus
    domains = tuple(
        replace(text, train=_encode(text.train, tokenizer), held_out=_encode(text.held_out, tokenizer))
        for text in corpus.domains
    )
    return replace(corpus, domains=domains)


def _encode(text: Tokens, tokenizer: Tokenizer) -> npt.NDArray[np.uint32]:
    ids: list[int] = []
    for document in text.tobytes().split(bytes([SEPARATOR])):
        if document:
            ids += [] if tokenizer.start is None else [tokenizer.start]
            # A training text may be cut anywhere, also inside a character.
            ids += tokenizer.encode_plain(document.decode("utf-8", errors="ignore"))
    return np.array(ids, dtype=np.uint32)
