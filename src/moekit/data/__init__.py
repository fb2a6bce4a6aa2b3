"""Text in, bytes out: sources, the embedded corpus, the split into train and held-out text, and batches.

The vocabulary is the 256 byte values. Byte 0 separates documents; text that holds it is binary, and is skipped.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.data.batches import check_large_enough, held_out_windows, is_scored, training_batch
    from moekit.data.corpus import Corpus, DomainText, build_corpus, load_corpus
    from moekit.data.documents import MAX_FILE_BYTES, Document, read_sources
    from moekit.data.embedded import embedded_documents
    from moekit.data.held_out import HELD_OUT_SHARE, Split, split_documents
    from moekit.data.tokenizers import SEPARATOR

__all__ = [
    "HELD_OUT_SHARE",
    "MAX_FILE_BYTES",
    "SEPARATOR",
    "Corpus",
    "Document",
    "DomainText",
    "Split",
    "build_corpus",
    "check_large_enough",
    "embedded_documents",
    "held_out_windows",
    "is_scored",
    "load_corpus",
    "read_sources",
    "split_documents",
    "training_batch",
]

_HOMES = {
    "batches": ("check_large_enough", "held_out_windows", "is_scored", "training_batch"),
    "corpus": ("Corpus", "DomainText", "build_corpus", "load_corpus"),
    "documents": ("MAX_FILE_BYTES", "Document", "read_sources"),
    "embedded": ("embedded_documents",),
    "held_out": ("HELD_OUT_SHARE", "Split", "split_documents"),
    "tokenizers": ("SEPARATOR",),
}


def __getattr__(name: str) -> Any:
    """Import `name` when it is asked for: `moekit generate` needs the tokenizers here, and not the rest."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"moekit.data.{module}"), name)
    raise AttributeError(f"module 'moekit.data' has no attribute {name!r}")
