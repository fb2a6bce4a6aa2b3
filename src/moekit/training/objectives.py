"""What a model of each kind learns from running text: batches as its `loss` takes them.

B sequences, T tokens of context.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moekit.config import Config, EncoderConfig, EncoderDecoderConfig, LSTMConfig, ModelConfig, XLNetConfig
from moekit.data import Corpus, held_out_windows, training_batch
from moekit.data.objectives.masked import masked_batch
from moekit.data.objectives.permutation import permutation_batch
from moekit.data.objectives.spans import span_batch
from moekit.errors import UsageError

Batch = dict[str, Tensor]

# A step that no training takes: the draws of what is measured are its own, and always the same.
_MEASURED = 2**63


class Objective:
    """Batches of running text for a model of that configuration, each a pure function of the seed and the step.

    Causal for decoders and LSTMs, masked tokens and next sentences for encoders, permutations for XLNet, cut-out spans
    for encoder-decoders. context: the longest rows that the model sees, special tokens included.
    """

    def __init__(self, config: Config, corpus: Corpus, *, sequences: int, context: int, seed: int) -> None:
        self.corpus, self.sequences, self.seed = corpus, sequences, seed
        self.make, self.window = _objective(config, context)

    def train(self, step: int) -> Batch:
        """The batch of a training step."""
        windows_BT = training_batch(
            self.corpus, step=step, sequences=self.sequences, context=self.window - 1, seed=self.seed
        )
        return self.make(windows_BT, self.seed, step)

    def held_out(self, tokens_per_domain: int) -> list[Batch]:
        """Batches of held-out text, always the same."""
        windows = held_out_windows(self.corpus, context=self.window - 1, tokens_per_domain=tokens_per_domain)
        rows = torch.split(torch.cat(list(windows.values())), self.sequences)
        return [self.make(windows_BT, self.seed, _MEASURED + index) for index, windows_BT in enumerate(rows)]


def _objective(config: Config, context: int) -> tuple[Callable[[Tensor, int, int], Batch], int]:
    """How to make a batch of windows, and how many tokens a window has."""
    match config:
        case ModelConfig() | LSTMConfig():
            return lambda windows_BT, seed, step: {"tokens": windows_BT}, context + 1
        case EncoderConfig():
            special = 3 if config.next_sentence else 2
            return _seeded(masked_batch, config=config), context - special
        case XLNetConfig():
            return _seeded(permutation_batch), context
        case EncoderDecoderConfig():
            return _seeded(span_batch, config=config), context
    raise UsageError(f"A {type(config).__name__} learns from pairs of texts; running text does not do.")


def _seeded(make: Callable[..., Batch], **fixed: Any) -> Callable[[Tensor, int, int], Batch]:
    return lambda windows_BT, seed, step: make(windows_BT, seed=seed, step=step, **fixed)
