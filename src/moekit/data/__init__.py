"""Text in, bytes out: sources, the embedded corpus, the split into train and held-out text, and batches.

The vocabulary is the 256 byte values. Byte 0 separates documents, so no text holds it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.data.batches import held_out_parts, held_out_windows, is_scored, large_enough, training_batch
    from moekit.data.corpus import Corpus, DomainText, build_corpus, load_corpus
    from moekit.data.documents import MAX_FILE_BYTES, Document, SourceText, read_sources, read_text
    from moekit.data.embedded import embedded_documents
    from moekit.data.held_out import HELD_OUT_SHARE, Split, split_documents
    from moekit.data.left_out import LeftOut
    from moekit.data.tokenizers import SEPARATOR

__all__ = [
    "HELD_OUT_SHARE",
    "MAX_FILE_BYTES",
    "SEPARATOR",
    "Corpus",
    "Document",
    "DomainText",
    "LeftOut",
    "SourceText",
    "Split",
    "build_corpus",
    "embedded_documents",
    "held_out_parts",
    "held_out_windows",
    "is_scored",
    "large_enough",
    "load_corpus",
    "read_sources",
    "read_text",
    "split_documents",
    "training_batch",
]

_HOMES = {
    "batches": ("held_out_parts", "large_enough", "held_out_windows", "is_scored", "training_batch"),
    "corpus": ("Corpus", "DomainText", "build_corpus", "load_corpus"),
    "documents": ("MAX_FILE_BYTES", "Document", "SourceText", "read_sources", "read_text"),
    "embedded": ("embedded_documents",),
    "left_out": ("LeftOut",),
    "held_out": ("HELD_OUT_SHARE", "Split", "split_documents"),
    "tokenizers": ("SEPARATOR",),
}


def __getattr__(name: str) -> Any:
    """Import `name` when it is asked for: `moekit generate` needs the tokenizers here, and not the rest."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"moekit.data.{module}"), name)
    raise AttributeError(f"module 'moekit.data' has no attribute {name!r}")
