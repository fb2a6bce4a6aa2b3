"""Architectures of GGUF files: their metadata as configurations of ours, their tensors as views of our parameters."""

from moekit.families.gguf.architectures import ARCHITECTURES, Architecture
from moekit.families.gguf.gguf_weights import wrong_shape
from moekit.families.gguf.model import GGUFModel
from moekit.families.gguf.rope_metadata import FACTORS
from moekit.families.gguf.tensors import layout
from moekit.families.gguf.written_metadata import describe, factors_of

__all__ = ["ARCHITECTURES", "FACTORS", "Architecture", "GGUFModel", "describe", "factors_of", "layout", "wrong_shape"]
