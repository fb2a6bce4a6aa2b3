"""The runner protocol: what generation needs of whatever computes a model, one token of each sequence after another.

B sequences, T tokens of one of them, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from moekit.kernels.packed import Numbers

OnTokens = Callable[[int], None]
"""Called with the number of tokens of a prompt that have just been computed."""


class Cache(Protocol):
    """The KV cache of one sequence, or whatever else a runner remembers of it."""

    @property
    def length(self) -> int:
        """The tokens seen."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`.

        This also repairs a cache whose computation was broken off, up to the length it had before.
        """
        ...


class Runner(Protocol):
    """A causal model.

    Attributes:
        vocab_size: the number of tokens that it knows.
        context: how many tokens a sequence may have.
    """

    vocab_size: int
    context: int

    def new_cache(self) -> Cache:
        """Make an empty cache for one sequence of up to `context` tokens."""
        ...

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        """Compute logits_V after the last of tokens_T (at least one), which follow those in the cache.

        Args:
            cache: the sequence's cache, which then holds the tokens too.
            tokens_T: the tokens.
            on_tokens: called after each chunk.
        """
        ...

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        """Compute logits_BV after one more token of each sequence."""
        ...
