"""What generation needs of whatever computes a model: sequences with a memory of their own, one token after another.

B sequences, T tokens of one of them, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from moekit.kernels.packed import Numbers

OnTokens = Callable[[int], None]
"""Called with the number of tokens of a prompt that have just been computed."""


class Cache(Protocol):
    """What a runner remembers of one sequence."""

    @property
    def length(self) -> int:
        """Tokens seen."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`.

        Also repairs a cache whose computation was broken off, up to the length it had before.
        """
        ...


class Runner(Protocol):
    """A causal model. context: how many tokens a sequence may have."""

    vocab_size: int
    context: int

    def new_cache(self) -> Cache:
        """An empty cache for one sequence of up to `context` tokens."""
        ...

    def prefill(self, cache: Cache, tokens_T: Sequence[int], on_tokens: OnTokens | None = None) -> Numbers:
        """logits_V after the last of tokens_T (at least one), which follow those in the cache.

        on_tokens: called after each chunk.
        """
        ...

    def decode(self, caches: Sequence[Cache], tokens_B: Sequence[int]) -> Numbers:
        """logits_BV after one more token of each sequence."""
        ...
