"""Several models as one: at each token their next-token distributions are mixed.

B sequences, T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import cast

import numpy as np

from moekit.core.errors import UsageError
from moekit.data.tokenizers import Tokenizer
from moekit.inference import Cache, LoadedModel, Runner
from moekit.inference.probabilities import log_softmax
from moekit.inference.prompt_tokens import PromptTokenizer
from moekit.inference.runner import OnTokens
from moekit.kernels.packed import Numbers


class EnsembleCache:
    """A cache of each model, of the same sequence."""

    def __init__(self, parts: Sequence[Cache]) -> None:
        self.parts = tuple(parts)

    @property
    def length(self) -> int:
        """Tokens seen by all models."""
        return min(part.length for part in self.parts)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        for part in self.parts:
            part.truncate(length)


class EnsembleRunner:
    """p(token) = Σ w_i p_i(token) over the runners i: a mixture of experts whose experts are whole models.

    weights: one for each runner, more than 0, scaled to add up to 1; by default all are equal. The context is the
    shortest one; of vocabularies that were padded to different lengths, what all have is mixed.
    Raises UsageError where there are no runners, or the weights are not such numbers.
    """

    def __init__(self, runners: Sequence[Runner], weights: Sequence[float] | None = None) -> None:
        if not runners:
            raise UsageError("An ensemble needs a model.")
        weights = [1.0] * len(runners) if weights is None else list(weights)
        if len(weights) != len(runners):
            raise UsageError(f"An ensemble of {len(runners)} models has {len(weights)} weights; give one for each.")
        if not all(0 < weight < math.inf for weight in weights):
            raise UsageError(f"The weights of an ensemble must be numbers more than 0, not {weights}.")
        self.runners = tuple(runners)
        self.vocab_size = min(runner.vocab_size for runner in runners)
        self.context = min(runner.context for runner in runners)
        self._log_weights = [math.log(weight / sum(weights)) for weight in weights]

    def new_cache(self) -> EnsembleCache:
        """Make an empty cache of each model."""
        return EnsembleCache([runner.new_cache() for runner in self.runners])

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        """Compute logits_V, which are log probabilities, after the last of tokens_T.

        on_tokens: told of tokens once every model has computed them; before that, after each chunk, of none.
        """
        assert isinstance(cache, EnsembleCache)

        def nothing_yet(_: int) -> None:
            if on_tokens is not None:
                on_tokens(0)

        *before, last = zip(self.runners, cache.parts, strict=True)
        logits = [runner.prefill(part, tokens_T, nothing_yet) for runner, part in before]
        logits.append(last[0].prefill(last[1], tokens_T, on_tokens))
        return self._mixed(logits)

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        """Compute logits_BV, which are log probabilities, after one more token of each sequence."""
        parts = zip(*(cast(EnsembleCache, cache).parts for cache in caches), strict=True)
        return self._mixed([runner.decode(part, tokens_B) for runner, part in zip(self.runners, parts, strict=True)])

    def _mixed(self, logits: Sequence[Numbers]) -> Numbers:
        """Compute log Σ w_i softmax(logits_i), over the last dimension."""
        weighted = [
            log_softmax(each[..., : self.vocab_size]) + log_weight
            for each, log_weight in zip(logits, self._log_weights, strict=True)
        ]
        mixed: Numbers = np.logaddexp.reduce(weighted).astype(np.float32)
        return mixed


def ensemble_of(models: Sequence[tuple[str, LoadedModel]], weights: Sequence[float] | None = None) -> LoadedModel:
    """Make one model of several, with the first one's tokenizer and chat template and all end tokens.

    Raises UsageError where their tokenizers are not the same, and as of EnsembleRunner.
    """
    runner = EnsembleRunner([model.runner for _, model in models], weights)
    (name, first), *others = models
    for other, model in others:
        check_same_encoding(first.tokenizer, model.tokenizer, (name, other))
    return LoadedModel(
        runner=runner,
        tokenizer=first.tokenizer,
        chat_template=first.chat_template,
        end_tokens=frozenset(chain.from_iterable(model.end_tokens for _, model in models)),
    )


def check_same_encoding(one: Tokenizer, other: Tokenizer, names: tuple[str, str]) -> None:
    """Raise UsageError, naming the models, where the tokenizers do not give the same ids for the same text.

    They must have the same tokens, and cut the text of all those tokens alike: two that have the same tokens and merge
    them in another order do not pass.
    """
    same = one is other or (_words(one) == _words(other) and _encoded_words(one) == _encoded_words(other))
    if not same:
        raise UsageError(
            f"{names[0]} and {names[1]} cut text into tokens in different ways, so that their distributions cannot be "
            "mixed; an ensemble takes models that share a tokenizer."
        )


def _words(tokenizer: Tokenizer) -> tuple[int | None, dict[str, int], list[str]]:
    """List the start token, the special ones, and the text of each."""
    special = dict(tokenizer.special_tokens) if isinstance(tokenizer, PromptTokenizer) else {}
    return tokenizer.start, special, [tokenizer.decode([id_]) for id_ in range(tokenizer.vocab_size)]


def _encoded_words(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(tokenizer.decode(range(tokenizer.vocab_size)))
