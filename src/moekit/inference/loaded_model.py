"""The model that is ready to generate, and what loading one from a folder and from a GGUF file share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moekit.data.tokenizers import Tokenizer
from moekit.inference.chat_template import ChatTemplate
from moekit.inference.model_sampling import ModelSampling
from moekit.inference.native_runner import NativeRunner
from moekit.inference.runner import Runner
from moekit.kernels.native.streaming import StreamingCounts
from moekit.placement import PlacedModel


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, ready to generate.

    Attributes:
        runner: what computes it.
        tokenizer: its tokenizer.
        chat_template: how a conversation becomes a prompt; None where the model has no template.
        end_tokens: the ids that end a text or an answer.
        special_texts: the texts of `bos_token` and others, by the names that chat templates know them by.
        sampling: what the model's files say of sampling; `moekit chat` goes by it.
        placed: what of it lies where, if it was placed to stay within a budget.
    """

    runner: Runner
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    end_tokens: frozenset[int]
    special_texts: Mapping[str, str] = field(default_factory=dict)
    sampling: ModelSampling = field(default_factory=ModelSampling)
    placed: PlacedModel | None = None

    @property
    def streaming_counts(self) -> StreamingCounts | None:
        """What was counted of what is read from disk; None where all of it is in memory."""
        if self.placed is None or not self.placed.placement.streams or not isinstance(self.runner, NativeRunner):
            return None
        return self.runner.streaming_counts


def token_ids(value: Any) -> frozenset[int]:
    """Read ids from a setting that holds one id, a list of them, or neither."""
    listed = value if isinstance(value, list) else [value]
    return frozenset(id_ for id_ in listed if isinstance(id_, int) and not isinstance(id_, bool))
