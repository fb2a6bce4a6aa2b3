"""Span corruption, T5's objective (arXiv 1910.10683, section 3.1.4).

Spans of the text are cut out, each replaced by a token that stands for nothing else, its sentinel; the target is the
spans, each behind its sentinel. B rows, N tokens of text, M of them cut out in L spans.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.core.errors import UsageError
from moekit.data.objectives.draws import uniform

_CUT, _KEPT = 5, 6

Ids = NDArray[np.int64]


def span_batch(
    text_BN: Tensor,
    config: EncoderDecoderConfig,
    *,
    seed: int,
    step: int,
    sentinel: int | None = None,
    share: float = 0.15,
    mean_span: float = 3.0,
) -> dict[str, Tensor]:
    """Make a training batch from windows of running text: what EncoderDecoder.loss takes.

    As in T5's code, a row begins with text that stays and ends with a span, so that no last sentinel closes the target,
    as one does in the paper's figure 2.

    Args:
        text_BN: int64 ids of the windows.
        config: the model's configuration.
        seed: the seed of the training.
        step: the training step.
        sentinel: the first sentinel, from which the others count down; by default the last id of the vocabulary. T5's
            own first is 32,099.
        share: the share of the text that is cut out.
        mean_span: the mean length of a span in tokens.

    Returns:
        source: the text with a sentinel for each span. target: each span behind its sentinel. Both are int64 and end
            with the end token, where the model has one. source_real, target_real: True throughout, as all rows are
            equally long.

    Raises:
        UsageError: where a row is too short, or ids of the text are sentinels.
    """
    text = text_BN.numpy()
    if sentinel is None:
        sentinel = min(config.vocab_size, config.target_vocabulary) - 1
    cut, spans = sizes(text.shape[1], share=share, mean_span=mean_span)
    if sentinel - spans < text.max():
        raise UsageError(
            f"{spans} sentinels down from {sentinel} reach into the text's ids, the highest of which is {text.max()}: "
            "use a larger vocabulary or shorter rows."
        )
    kept_BL = random_lengths(text.shape[1] - cut, spans, _draws(text, seed, step, _KEPT))
    cut_BL = random_lengths(cut, spans, _draws(text, seed, step, _CUT))
    end = [] if config.end_token is None else [config.end_token]
    source, target = [], []
    for row_N, kept_L, cut_L in zip(text, kept_BL, cut_BL, strict=True):
        kept, gone = corrupt(row_N, kept_L, cut_L, sentinel)
        source.append(np.concatenate((kept, end)))
        target.append(np.concatenate((gone, end)))
    batch = {}
    for name, side in (("source", source), ("target", target)):
        batch[name] = torch.from_numpy(np.stack(side).astype(np.int64))
        batch[f"{name}_real"] = torch.ones_like(batch[name], dtype=torch.bool)
    return batch


def sizes(tokens: int, *, share: float, mean_span: float) -> tuple[int, int]:
    """Compute how many of a row's tokens are cut out, and in how many spans: one or more, each after one that stays."""
    if tokens < 2:
        raise UsageError(f"A row of {tokens} tokens has none to cut out and one to keep: use longer rows.")
    if not 0 < share < 1 or mean_span < 1:
        raise UsageError(f"share ({share}) must lie between 0 and 1, and mean_span ({mean_span}) be at least 1.")
    cut = min(max(round(tokens * share), 1), tokens - 1)
    return cut, min(max(round(cut / mean_span), 1), tokens - cut)


def random_lengths(total: int, parts: int, draws_BN: NDArray[np.float64]) -> Ids:
    """Draw lengths_BL: `parts` lengths of at least 1 whose sum is `total`, every such list equally likely."""
    ends = np.sort(draws_BN[:, : total - 1].argsort(1)[:, : parts - 1], 1) + 1
    return np.diff(ends, axis=1, prepend=0, append=total)


def corrupt(row_N: Ids, kept_L: Ids, cut_L: Ids, sentinel: int) -> tuple[Ids, Ids]:
    """Make the row with sentinels for the spans, and the spans behind their sentinels; both without an end token."""
    pieces = np.split(row_N, np.stack((kept_L, cut_L), 1).ravel().cumsum()[:-1])
    marks = [np.array([sentinel - span]) for span in range(len(kept_L))]
    source = [part for kept, mark in zip(pieces[::2], marks, strict=True) for part in (kept, mark)]
    target = [part for gone, mark in zip(pieces[1::2], marks, strict=True) for part in (mark, gone)]
    return np.concatenate(source), np.concatenate(target)


def _draws(text_BN: Ids, seed: int, step: int, stream: int) -> NDArray[np.float64]:
    return uniform(text_BN.shape, seed=seed, step=step, stream=stream)
