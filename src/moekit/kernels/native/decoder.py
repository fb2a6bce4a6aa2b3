"""The native decoder: one call computes all layers, for one more token of several sequences or for a whole prompt.

B sequences, T tokens, P positions in a cache, D model width, H query heads, G key-value heads, C head width, F hidden
width, E experts, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moekit.config import ModelConfig
from moekit.kernels.native.decoder_description import describe, unsupported
from moekit.kernels.native.direct_reading import reading
from moekit.kernels.native.module import native
from moekit.kernels.native.native_model import native_model
from moekit.kernels.native.streaming import NativeStreaming, Streaming, StreamingCounts
from moekit.kernels.native.weights import DecoderWeights
from moekit.kernels.packed import Numbers

CacheKind = Literal["fp32", "bf16", "q8"]
Doubles = npt.NDArray[np.float64]


class NativeCache:
    """Keep keys and values of one sequence, all layers; memory is taken 256 positions at a time, as they come.

    native: the compiled side's object. shapes: G and C of each layer.
    """

    def __init__(self, native: Any, shapes: Sequence[tuple[int, int]]) -> None:
        self.native, self.shapes = native, shapes

    @property
    def length(self) -> int:
        """How many tokens the cache has seen."""
        return int(self.native.length)

    @property
    def bytes(self) -> int:
        """How much memory the cache takes now."""
        return int(self.native.bytes)

    def truncate(self, length: int) -> None:
        """Forget what comes after the first `length` tokens."""
        self.native.truncate(length)

    def read(self, layer: int, tokens: int) -> tuple[Numbers, Numbers]:
        """Copy key_GPC, after rope, and value_GPC of the first P = `tokens` positions of a layer, as they are kept.

        Raises IndexError where the cache has no such layer or fewer positions.
        """
        heads, width = self.shapes[layer] if layer < len(self.shapes) else (0, 0)
        key_GPC, value_GPC = np.empty((2, heads, tokens, width), np.float32)
        self.native.read(layer, key_GPC, value_GPC)
        return key_GPC, value_GPC


class NativeDecoder:
    """Compute a model of packed weights.

    Raises ValueError where the weights do not have the configuration's shapes, and where `unsupported` has a reason
    against the configuration.

    streaming: what stays on disk; of those matrices in `weights`, only shapes and types count.
    """

    def __init__(self, config: ModelConfig, weights: DecoderWeights, streaming: Streaming | None = None) -> None:
        reason = unsupported(config)
        if reason:
            raise ValueError(f"the native decoder cannot compute this model because {reason}")
        description = describe(config)
        self.config = config
        module = native()
        self._streaming = NativeStreaming(module, streaming or Streaming())
        self._native = native_model(module, description, weights, self._streaming)
        self._cache_shapes = [
            (layer.attention.kv_heads, layer.attention.head_width) for layer in description.layers if layer.attention
        ]

    @property
    def streaming_counts(self) -> StreamingCounts:
        """What was counted of what stays on disk."""
        return self._streaming.counts()

    def new_cache(self, kind: CacheKind | None = None) -> NativeCache:
        """Make an empty cache for one sequence; by default fp32 where the model's matrices are, else bf16.

        q8: 8 bits with a scale for each 32 numbers, 9 bits in all.
        """
        kinds = native().CacheKind
        kept = getattr(kinds, kind or ("fp32" if self._native.fp32 else "bf16"))
        return NativeCache(self._native.new_cache(kept, self.config.context), self._cache_shapes)

    def decode(self, caches: Sequence[NativeCache], tokens_B: Sequence[int]) -> Numbers:
        """Compute logits_BV after one more token of each sequence, whose caches are extended.

        Raises ValueError where a context is full, IndexError where a token is not in the vocabulary, and MoekitError
        where a file cannot be read: nothing has changed then. Other Python threads run meanwhile; of several calls,
        one computes at a time.
        """
        logits_BV = np.empty((len(tokens_B), self.config.vocab_size), np.float32)
        with reading():
            self._native.decode([cache.native for cache in caches], list(tokens_B), logits_BV)
        return logits_BV

    def prefill(self, cache: NativeCache, tokens_T: Sequence[int]) -> Numbers:
        """Extend a sequence by tokens_T, at least one; give logits_V after the last of them. Raises like `decode`.

        With fp32 matrices everything is fp32. Otherwise the layers' products are bf16 where the processor multiplies
        such numbers, else fp32; sums are fp32, and the head's product is that of a step.
        """
        logits_V = np.empty(self.config.vocab_size, np.float32)
        with reading():
            self._native.prefill(cache.native, list(tokens_T), logits_V)
        return logits_V

    def extend(self, cache: NativeCache, tokens_T: Sequence[int]) -> None:
        """Extend a sequence like `prefill`, without computing logits."""
        with reading():
            self._native.prefill(cache.native, list(tokens_T), None)

    def score(self, cache: NativeCache, tokens_T: Sequence[int], targets_T: Sequence[int]) -> Doubles:
        """Extend a sequence like `prefill`; give log p in nats of each target after the tokens up to it, shape (T,).

        Raises like `decode`. The logits of a few tokens at a time are in memory.
        """
        log_probs_T = np.empty(len(tokens_T), np.float64)
        with reading():
            self._native.score(cache.native, list(tokens_T), list(targets_T), log_probs_T)
        return log_probs_T
