"""Running a model: what computes it (runners), what is drawn from its logits, and text in and out."""

from moekit.inference.chat_template import ChatTemplate
from moekit.inference.conversation import Conversation
from moekit.inference.generation import Completion, GenerationOptions, Memory, generate
from moekit.inference.load import load_runner
from moekit.inference.loaded_model import LoadedModel
from moekit.inference.runner import Cache, Runner
from moekit.inference.sampling import SamplingOptions

__all__ = [
    "Cache",
    "ChatTemplate",
    "Completion",
    "Conversation",
    "GenerationOptions",
    "LoadedModel",
    "Memory",
    "Runner",
    "SamplingOptions",
    "generate",
    "load_runner",
]
