"""Windows of a corpus as tensors of byte values.

B sequences in a batch, T tokens of context, N windows. A window holds T + 1 bytes: inputs are all but the last, targets
all but the first.
"""

import numpy as np
import torch
from torch import Tensor

from moekit.core.errors import UsageError
from moekit.data.corpus import Corpus, Tokens
from moekit.data.left_out import Reason, Say, Tally, ignore
from moekit.data.tokenizers import SEPARATOR

_STRETCHES = 20  # so many of them at least are the parts of a domain
_NAMED = 8  # so many domains that are too small are named one by one


def training_batch(corpus: Corpus, *, step: int, sequences: int, context: int, seed: int) -> Tensor:
    """Make the windows of training step `step`: int64 (B, T + 1), a pure function of the arguments.

    Each sequence draws its domain uniformly, then its place in that domain's training text, so no state has to be kept
    to resume. The draws are Philox's raw output (Salmon et al. 2011) under the key (seed, step), which no version of
    numpy changes. `corpus` must have passed `large_enough`.
    """
    window = context + 1
    philox = np.random.Philox(key=np.array([seed, step], dtype=np.uint64))
    draws = philox.random_raw(2 * sequences).reshape(sequences, 2).tolist()
    windows_BT = np.empty((sequences, window), dtype=np.int64)
    for row, (domain_draw, start_draw) in enumerate(draws):
        text = corpus.domains[domain_draw % len(corpus.domains)].train
        start = start_draw % (len(text) - window + 1)
        windows_BT[row] = text[start : start + window]
    return torch.from_numpy(windows_BT)


def held_out_windows(corpus: Corpus, *, context: int, tokens_per_domain: int) -> dict[str, Tensor]:
    """Make for each domain windows of its held-out text, int64 (N, T + 1), spread evenly from its start to its end.

    N is `tokens_per_domain` // T, at least 1, or as many as the domain has. No byte is a target twice. `corpus` must
    have passed `large_enough`.
    """
    return {
        domain.name: _spread_windows(domain.held_out, context, max(1, tokens_per_domain // context))
        for domain in corpus.domains
    }


def held_out_parts(corpus: Corpus, *, context: int, tokens_per_domain: int) -> dict[str, Tensor]:
    """Say of each target of `held_out_windows` to which part of its domain's text it belongs: int64 (N, T), from 0.

    A part is a document; one that holds more than a twentieth of a domain's targets is cut into stretches of as many,
    so that there are enough parts to tell how much figures depend on which text was held out.
    """
    return {
        domain.name: _parts(domain.held_out, context, max(1, tokens_per_domain // context)) for domain in corpus.domains
    }


def is_scored(targets: Tensor) -> Tensor:
    """Tell which targets count, as bool of the same shape: separators are ours, not the text's."""
    return targets != SEPARATOR


def large_enough(corpus: Corpus, *, context: int, sequences: int, say: Say = ignore) -> Corpus:
    """Leave out the domains of which a side does not fill a window.

    Args:
        corpus: the text.
        context: the tokens of a window, the last target aside.
        sequences: the windows of a batch.
        say: told which domains are left out.

    Raises:
        UsageError: naming them, where that is all domains, or the training text does not fill a batch.
    """
    window = context + 1
    tally = Tally()
    small = [text for text in corpus.domains if min(text.train_bytes, text.held_out_bytes) < window]
    if len(small) == len(corpus.domains):
        sizes = "; ".join(
            f"{text.name!r} has {text.train_bytes:,} bytes of training text and {text.held_out_bytes:,} held out"
            for text in small[:_NAMED]
        )
        more = f"; and {len(small) - _NAMED:,} more" if len(small) > _NAMED else ""
        raise UsageError(
            f"A context of {context:,} needs {window:,} bytes on both sides of a domain, and {sizes}{more}: give more "
            "text, or use a smaller context."
        )
    for text in small:
        reason = Reason(f"of a domain with less than {window:,} bytes on a side, which a context of {context:,} needs")
        tally.add(text.name, reason, text.train_bytes + text.held_out_bytes, text.name)
    tally.tell(corpus.name, say)
    kept = corpus.without(tally, (text.name for text in small)) if small else corpus
    total, batch = sum(domain.train_bytes for domain in kept.domains), sequences * window
    if total < batch:
        raise UsageError(
            f"There are {total:,} bytes of training text, and one batch of {sequences:,} sequences needs {batch:,}: "
            "give more text, or use a smaller batch or context."
        )
    return kept


def _spread_windows(text: Tokens, context: int, wanted: int) -> Tensor:
    starts = _spread_starts(text, context, wanted)
    windows_NT = np.stack([text[start : start + context + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(windows_NT)


def _spread_starts(text: Tokens, context: int, wanted: int) -> list[int]:
    count = min(wanted, (len(text) - 1) // context)
    last_start = len(text) - 1 - context
    # count * context <= len(text) - 1, so starts are at least `context` apart
    return [index * last_start // max(1, count - 1) for index in range(count)]


def _parts(text: Tokens, context: int, wanted: int) -> Tensor:
    starts = np.array(_spread_starts(text, context, wanted))
    target_NT = starts[:, None] + np.arange(1, context + 1)
    # A separator stands before each document; targets are in the order of the text.
    document = np.searchsorted(np.flatnonzero(text == SEPARATOR), target_NT.ravel(), side="right")
    place = np.arange(document.size) - np.searchsorted(document, document)
    stretch = place // -(-document.size // _STRETCHES)
    _, part = np.unique(document * document.size + stretch, return_inverse=True)
    return torch.from_numpy(part.reshape(target_NT.shape).astype(np.int64))
