"""GGUF files, the format of quantised models: read where they lie, and written as a stream."""

from moekit.checkpoint.gguf.metadata import Metadata
from moekit.checkpoint.gguf.reader import GGUFFile, GGUFTensor, is_gguf
from moekit.checkpoint.gguf.tensor_types import PACKED_TYPES, STORED_TYPES, StoredType
from moekit.checkpoint.gguf.values import Strings, Value
from moekit.checkpoint.gguf.writer import OutputTensor, Written, check_free, gguf_bytes, write_gguf

__all__ = [
    "PACKED_TYPES",
    "STORED_TYPES",
    "GGUFFile",
    "GGUFTensor",
    "Metadata",
    "OutputTensor",
    "StoredType",
    "Strings",
    "Value",
    "Written",
    "check_free",
    "gguf_bytes",
    "is_gguf",
    "write_gguf",
]
