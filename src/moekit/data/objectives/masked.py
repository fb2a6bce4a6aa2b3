"""BERT's objective: pairs of sentences, and tokens that are masked and have to be predicted (arXiv 1810.04805, 3.1).

B sequences, N tokens of text, T tokens with [CLS] and [SEP]. Everything is a pure function of its arguments.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moekit.config.encoder import EncoderConfig
from moekit.core.errors import UsageError
from moekit.data.objectives.draws import uniform
from moekit.models.encoder import NOT_PREDICTED

_PAIRS, _MASKS = 1, 2

Ids = NDArray[np.int64]


def masked_batch(
    text_BN: Tensor, config: EncoderConfig, *, seed: int, step: int, share: float = 0.15, most: int = 20
) -> dict[str, Tensor]:
    """Make a training batch for an encoder from windows of running text.

    Args:
        text_BN: int64 ids of the windows.
        config: the encoder's configuration.
        seed: the seed of the training.
        step: the training step.
        share: the share of a sequence's tokens that are predicted (see `mask`).
        most: the most tokens of a sequence that are predicted.

    Returns:
        tokens, types, labels: int64 (B, T); labels are the masked tokens, NOT_PREDICTED elsewhere. T is N + 3 with
            pairs, "[CLS] A [SEP] B [SEP]" cut at a random place, and N + 2 without. Only where the model has that head,
            also next_sentence: int64 (B), 0 where the second part follows the first, 1 where it is another window's.

    Raises:
        UsageError: where the configuration lacks [CLS], [SEP] or [MASK], or pairs need more than what is there.
    """
    text = text_BN.numpy()
    draws = uniform((len(text), 3), seed=seed, step=step, stream=_PAIRS)
    if config.next_sentence:
        tokens, types, random = sentence_pairs(text, draws, *_bounds(config))
        batch = {"next_sentence": torch.from_numpy(random)}
    else:
        start, separator = _bounds(config)
        tokens = np.pad(text, ((0, 0), (1, 1)), constant_values=((0, 0), (start, separator)))
        types = np.zeros_like(tokens)
        batch = {}
    draws = uniform((3, *tokens.shape), seed=seed, step=step, stream=_MASKS)
    tokens, labels = mask(tokens, config, draws, share=share, most=most)
    arrays = {"tokens": tokens, "types": types, "labels": labels}
    return batch | {name: torch.from_numpy(array) for name, array in arrays.items()}


def sentence_pairs(
    text_BN: Ids, draws_B3: NDArray[np.float64], start_token: int, separator_token: int
) -> tuple[Ids, Ids, Ids]:
    """Cut each window at a random place; half of the time continue it with another window, of the same length.

    Args:
        text_BN: the windows.
        draws_B3: numbers in [0, 1): where to cut, whether the second part is random, which other window.
        start_token: [CLS].
        separator_token: [SEP].

    Returns:
        tokens (B, N + 3), types of the same shape, and whether the second part is random (B).
    """
    batch, length = text_BN.shape
    if batch < 2 or length < 2:
        raise UsageError("Pairs of sentences need at least two windows a batch, of at least two tokens each.")
    cut_B = 1 + (draws_B3[:, 0] * (length - 1)).astype(np.int64)
    random_B = (draws_B3[:, 1] < 0.5).astype(np.int64)
    other_B = (np.arange(batch) + random_B * (1 + (draws_B3[:, 2] * (batch - 1)).astype(np.int64))) % batch
    tokens = np.empty((batch, length + 3), dtype=np.int64)
    types = np.zeros_like(tokens)
    for row, (cut, other) in enumerate(zip(cut_B.tolist(), other_B.tolist(), strict=True)):
        first, second = text_BN[row, :cut], text_BN[other, cut:]
        tokens[row] = [start_token, *first, separator_token, *second, separator_token]
        types[row, cut + 2 :] = 1
    return tokens, types, random_B


def mask(
    tokens_BT: Ids, config: EncoderConfig, draws_3BT: NDArray[np.float64], *, share: float = 0.15, most: int = 20
) -> tuple[Ids, Ids]:
    """Mask tokens: of those to predict 80 % become [MASK], 10 % a random token that is not special, and 10 % stay.

    Args:
        tokens_BT: the tokens.
        config: the encoder's configuration, with [MASK] and the other special tokens.
        draws_3BT: numbers in [0, 1): which tokens are predicted, what becomes of them, which random token.
        share: the share of a sequence's tokens that are predicted, none of them special.
        most: the most that are predicted of a sequence; at least one is.

    Returns:
        What the model sees and what it has to predict, both (B, T).
    """
    if config.mask_token is None:
        raise UsageError("The configuration has no mask_token, which masked training needs.")
    special = np.array(config.special_tokens)
    ordinary = np.setdiff1d(np.arange(config.vocab_size), special)
    is_text_BT = ~np.isin(tokens_BT, special)
    real_B = (tokens_BT != (-1 if config.pad_token is None else config.pad_token)).sum(1)
    count_B = np.minimum(np.clip(np.rint(real_B * share), 1, most), is_text_BT.sum(1))
    order_BT = np.where(is_text_BT, draws_3BT[0], np.inf).argsort(1, kind="stable").argsort(1, kind="stable")
    predicted_BT = order_BT < count_B[:, None]
    replaced_BT = ordinary[(draws_3BT[2] * len(ordinary)).astype(np.int64)]
    fate_BT = draws_3BT[1]
    seen_BT = np.where(fate_BT < 0.8, config.mask_token, np.where(fate_BT < 0.9, replaced_BT, tokens_BT))
    return np.where(predicted_BT, seen_BT, tokens_BT), np.where(predicted_BT, tokens_BT, NOT_PREDICTED)


def _bounds(config: EncoderConfig) -> tuple[int, int]:
    if config.start_token is None or config.separator_token is None:
        raise UsageError("The configuration has no start_token or separator_token, which masked training needs.")
    return config.start_token, config.separator_token
