"""A runner asked and answering in tensors, which tests compare.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moekit.inference.runner import Cache, OnTokens, Runner


def prefill(runner: Runner, cache: Cache, tokens_T: Tensor, on_tokens: OnTokens | None = None) -> Tensor:
    """Compute logits_V after a prompt."""
    return torch.from_numpy(runner.prefill(cache, tokens_T.tolist(), on_tokens))


def decode(runner: Runner, caches: Sequence[Cache], tokens_B: Tensor) -> Tensor:
    """Compute logits_BV after one more token of each sequence."""
    return torch.from_numpy(runner.decode(caches, tokens_B.tolist()))
