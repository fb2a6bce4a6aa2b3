"""The model that is ready to generate, and what loading one from a folder and from a GGUF file share."""

from dataclasses import dataclass
from typing import Any

from moekit.config import ModelConfig
from moekit.data.tokenizers import Tokenizer
from moekit.inference.chat_template import ChatTemplate
from moekit.inference.runner import Runner
from moekit.kernels import native
from moekit.kernels.native.decoder_description import unsupported


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, ready to generate.

    Attributes:
        runner: what computes it.
        tokenizer: its tokenizer.
        chat_template: how a conversation becomes a prompt; None where the model has no template.
        end_tokens: the ids that end a text or an answer.
    """

    runner: Runner
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    end_tokens: frozenset[int]


def is_native(config: ModelConfig) -> bool:
    """Tell whether the native kernels are there and compute such a model."""
    return native.available() and unsupported(config) is None


def token_ids(value: Any) -> frozenset[int]:
    """Read ids from a setting that holds one id, a list of them, or neither."""
    listed = value if isinstance(value, list) else [value]
    return frozenset(id_ for id_ in listed if isinstance(id_, int) and not isinstance(id_, bool))
