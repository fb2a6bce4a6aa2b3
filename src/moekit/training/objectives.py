"""The objective of each kind of model on running text: batches as its `loss` takes them.

B sequences, T tokens of context.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moekit.config import Config, EncoderConfig, EncoderDecoderConfig, LSTMConfig, ModelConfig, XLNetConfig
from moekit.core.errors import UsageError
from moekit.data import Corpus, held_out_windows, training_batch
from moekit.data.objectives.draws import uniform
from moekit.data.objectives.masked import masked_batch
from moekit.data.objectives.pairs import pair_batch
from moekit.data.objectives.permutation import permutation_batch
from moekit.data.objectives.spans import span_batch
from moekit.data.text_pairs import Pair

Batch = dict[str, Tensor]

# A step that no training takes: the draws of what is measured are its own, and always the same.
_MEASURED = 2**63


class Objective:
    """Batches of running text for a model of that configuration, each a pure function of the seed and the step.

    The objective is causal for decoders and LSTMs, masked tokens and next sentences for encoders, permutations for
    XLNet, cut-out spans for encoder-decoders.

    Args:
        config: the model's configuration.
        corpus: the text.
        sequences: the rows of a batch.
        context: the longest rows that the model sees, special tokens included.
        seed: the seed of the training.
    """

    def __init__(self, config: Config, corpus: Corpus, *, sequences: int, context: int, seed: int) -> None:
        self.corpus, self.sequences, self.seed = corpus, sequences, seed
        self.make, self.window = _objective(config, context)

    def train(self, step: int) -> Batch:
        """Make the batch of a training step."""
        windows_BT = training_batch(
            self.corpus, step=step, sequences=self.sequences, context=self.window - 1, seed=self.seed
        )
        return self.make(windows_BT, self.seed, step)

    def held_out(self, tokens_per_domain: int) -> list[Batch]:
        """Make batches of held-out text, always the same."""
        windows = held_out_windows(self.corpus, context=self.window - 1, tokens_per_domain=tokens_per_domain)
        rows = torch.split(torch.cat(list(windows.values())), self.sequences)
        return [self.make(windows_BT, self.seed, _MEASURED + index) for index, windows_BT in enumerate(rows)]

    def data_sha256(self) -> str:
        """Hash all text of both sides, as tokens."""
        return Corpus.of(self.corpus.name, self.corpus.domains).sha256


def _objective(config: Config, context: int) -> tuple[Callable[[Tensor, int, int], Batch], int]:
    """Find how to make a batch of windows, and how many tokens a window has."""
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
    raise UsageError(f"A {type(config).__name__} learns from pairs of texts: name a file with pairs.")


def _seeded(make: Callable[..., Batch], **fixed: Any) -> Callable[[Tensor, int, int], Batch]:
    return lambda windows_BT, seed, step: make(windows_BT, seed=seed, step=step, **fixed)


@dataclass(frozen=True)
class PairObjective:
    """Batches of pairs of texts, drawn with replacement: a pure function of the seed and the step.

    Attributes:
        end: the token that ends sources and targets, or None.
        pad: the token that fills rows up.
    """

    train_pairs: Sequence[Pair]
    held_out_pairs: Sequence[Pair]
    sequences: int
    seed: int
    pad: int
    end: int | None

    def train(self, step: int) -> Batch:
        """Make the batch of a training step."""
        draws = uniform((self.sequences,), seed=self.seed, step=step, stream=7)
        return self._batch([self.train_pairs[int(draw * len(self.train_pairs))] for draw in draws])

    def held_out(self, tokens: int) -> list[Batch]:
        """Make batches of held-out pairs, always the same, up to about so many target tokens."""
        taken, count = [], 0
        for pair in self.held_out_pairs:
            taken.append(pair)
            count += len(pair[1])
            if count >= tokens:
                break
        return [self._batch(taken[i : i + self.sequences]) for i in range(0, len(taken), self.sequences)]

    def data_sha256(self) -> str:
        """Hash all pairs of both sides, as tokens."""
        digest = hashlib.sha256()
        for pairs in (self.train_pairs, self.held_out_pairs):
            digest.update(len(pairs).to_bytes(8, "little"))
            for source, target in pairs:
                digest.update(repr((list(source), list(target))).encode())
        return digest.hexdigest()

    def _batch(self, pairs: Sequence[Pair]) -> Batch:
        sources, targets = zip(*pairs, strict=True)
        return pair_batch(sources, targets, pad=self.pad, end=self.end)
