"""Inference: runners that compute a model, sampling, generation, and conversations."""

from moekit.inference.chat_template import ChatTemplate
from moekit.inference.conversation import Conversation
from moekit.inference.generate_text import generate
from moekit.inference.generation import Completion, GenerationOptions, PrefixCache, complete
from moekit.inference.load import load_runner
from moekit.inference.loaded_model import LoadedModel
from moekit.inference.runner import Cache, Runner
from moekit.inference.sampling import SamplingOptions
from moekit.placement import MemoryOptions, PlacedModel

__all__ = [
    "Cache",
    "ChatTemplate",
    "Completion",
    "Conversation",
    "GenerationOptions",
    "LoadedModel",
    "MemoryOptions",
    "PlacedModel",
    "PrefixCache",
    "Runner",
    "SamplingOptions",
    "complete",
    "generate",
    "load_runner",
]
