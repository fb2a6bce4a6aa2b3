"""The fast runner on a CPU: weights stay packed as they lie in their file.

A step is one native call, and so are up to 512 tokens of a prompt.

B sequences, T tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from typing import cast

from moekit.config import ModelConfig
from moekit.inference.checks import checked_context
from moekit.inference.runner import Cache, OnTokens
from moekit.kernels.native.decoder import NativeCache, NativeDecoder
from moekit.kernels.native.streaming import Streaming, StreamingCounts
from moekit.kernels.native.weights import DecoderWeights, matrices
from moekit.kernels.packed import Numbers

_CHUNK = 512
"""Tokens of a prompt that are computed at once: each chunk reads all weights, and progress is seen between them."""


class NativeRunner:
    """Run a decoder that `kernels.native.description.unsupported` has nothing against.

    context: tokens of a sequence, at most the model's, which is the default. With fp32 weights everything is fp32;
    otherwise the cache is bf16, and so are products of prompts where the processor has such. streaming: what stays
    on disk.

    Attributes:
        config: the model's configuration.
        weight_bytes: what its matrices take.
        weight_type: the name of the type that takes the most of that.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        context: int | None = None,
        streaming: Streaming | None = None,
    ) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.context = checked_context(context, config.context)
        self._decoder = NativeDecoder(config.model_copy(update={"context": self.context}), weights, streaming)
        taken: Counter[str] = Counter()
        for matrix in matrices(weights):
            taken[matrix.type.name] += matrix.data_RB.nbytes
        self.weight_bytes, self.weight_type = taken.total(), max(taken, key=lambda name: taken[name])

    @property
    def streaming_counts(self) -> StreamingCounts:
        """What was counted of what stays on disk."""
        return self._decoder.streaming_counts

    def new_cache(self) -> NativeCache:
        """Make an empty cache, which takes its memory as tokens come."""
        return self._decoder.new_cache()

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        """Compute logits_V after the last of tokens_T; on_tokens is told how many tokens each chunk had."""
        assert isinstance(cache, NativeCache)
        last = (len(tokens_T) - 1) // _CHUNK * _CHUNK
        for begin in range(0, last, _CHUNK):
            self._decoder.extend(cache, tokens_T[begin : begin + _CHUNK])
            if on_tokens is not None:
                on_tokens(_CHUNK)
        logits_V = self._decoder.prefill(cache, tokens_T[last:])
        if on_tokens is not None:
            on_tokens(len(tokens_T) - last)
        return logits_V

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        """Compute logits_BV after one more token of each sequence."""
        return self._decoder.decode(cast(Sequence[NativeCache], caches), tokens_B)
