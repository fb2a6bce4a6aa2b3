"""The runner that serves every causal decoder: the torch modules as they are, one sequence at a time.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from moekit.inference.checks import checked_context, decoder_config
from moekit.inference.runner import Cache, OnTokens
from moekit.kernels.packed import Numbers
from moekit.moe import without_capacity
from moekit.nn import KeyValueCache

if TYPE_CHECKING:
    from moekit.models import Decoder
    from moekit.models.decoder import DecoderLayer

_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}

_CHUNK = 512
"""Tokens of a prompt that are computed at once: enough for the matrix products, and progress is seen."""


class TorchCache:
    """The KV cache of one sequence: a KeyValueCache for each layer, of a batch of one."""

    def __init__(self, layers: list[KeyValueCache]) -> None:
        self.layers = layers

    @property
    def length(self) -> int:
        """The tokens seen by all layers: by the last one, which comes to a token after the others."""
        return self.layers[-1].length

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens has no first {length}")
        for layer in self.layers:
            layer.length = length


class TorchRunner:
    """Runs any decoder of `models/`, in the number type of its weights, which the cache has, too.

    Args:
        model: the decoder.
        context: the tokens of a sequence, at most the model's, which is the default.

    Raises:
        UsageError: where the context is more, or where the model cannot generate.
    """

    def __init__(self, model: "Decoder", context: int | None = None) -> None:
        config = decoder_config(model.config)
        self.model, self.config = model, config
        self.vocab_size = config.vocab_size
        self.context = checked_context(context, config.context)

    def new_cache(self) -> TorchCache:
        """Make an empty cache. Its memory is taken from the system only as tokens are written."""
        dtype = self.model.embedding.weight.dtype
        attentions = [cast("DecoderLayer", layer).attention for layer in self.model.layers]
        return TorchCache([attention.new_cache(1, self.context, dtype) for attention in attentions])

    @property
    def weight_bytes(self) -> int:
        """What the parameters take; one that has two names counts once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def weight_type(self) -> str:
        """The name of the type of the embedding and, as a rule, of all other weights."""
        return _TYPES[self.model.embedding.weight.dtype]

    @torch.inference_mode()
    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        """Compute logits_V after the last of tokens_T."""
        assert isinstance(cache, TorchCache)
        logits_V = torch.empty(0)
        for chunk_T in torch.split(torch.tensor(tokens_T), _CHUNK):
            # A prompt is read as if token by token: there, no expert is ever full.
            with without_capacity(self.model):
                logits_V = self.model(chunk_T[None], caches=cache.layers, last_only=True)[0, -1]
            if on_tokens is not None:
                on_tokens(len(chunk_T))
        return cast(Numbers, logits_V.float().numpy())

    @torch.inference_mode()
    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        """Compute logits_BV after one more token of each sequence."""
        pairs = zip(caches, tokens_B, strict=True)
        return np.stack([self.prefill(cache, [token]) for cache, token in pairs])
