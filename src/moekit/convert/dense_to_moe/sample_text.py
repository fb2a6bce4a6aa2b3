"""A sample of text as tokens, on which channels that are active together are found."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from moekit.config import ModelConfig
from moekit.convert.conversion import Refused
from moekit.data import embedded_documents, read_sources
from moekit.data.model_tokenizer import tokenizer_of
from moekit.models import config_of

_log = logging.getLogger(__name__)
_ROWS, _LENGTH = 16, 128


def sample_tokens(folder: Path, sources: Sequence[str]) -> Tensor:
    """Take rows of tokens from all over the sources' text, (B, T); without sources, from the embedded corpus.

    Raises UsageError where a source cannot be read, `Refused` where no text is long enough.
    """
    config = config_of(folder)
    assert isinstance(config, ModelConfig)
    tokenizer = tokenizer_of(folder, config.vocab_size)
    documents = read_sources(sources, say=_log.warning) if sources else embedded_documents()
    length = min(_LENGTH, config.context)
    rows = []
    for document in documents[:: max(1, len(documents) // (4 * _ROWS))]:
        ids = tokenizer.encode(document.text[: 32 * length].decode("utf-8", errors="ignore"))[:length]
        rows += [ids] if len(ids) == length else []
    if not rows:
        raise Refused([f"No text of --data is as long as {length} tokens."])
    return torch.tensor(rows[:: max(1, len(rows) // _ROWS)][:_ROWS])
