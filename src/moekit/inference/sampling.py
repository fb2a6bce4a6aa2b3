"""Sampling: from logits to the next token of each sequence.

The order is that of transformers' processors: logit bias, repetition penalty, temperature, top-k, top-p, min-p.
(llama.cpp takes the temperature last, so that its top-p and min-p see the untempered distribution.)

B sequences, V vocabulary, N candidates that are left of it.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moekit.core.errors import MoekitError, UsageError
from moekit.inference.probabilities import Doubles, softmax
from moekit.kernels.packed import Numbers

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a token is sampled; by default it is the most probable one.

    Attributes:
        temperature: logits are divided by it; 0 takes the most probable token, whatever the next three say.
        top_k: how many of the most probable tokens stay; 0 for all.
        top_p: the most probable tokens stay whose probabilities add up to it (Holtzman et al., arXiv 1904.09751).
        min_p: tokens stay that have at least this share of the most probable one's probability (arXiv 2407.01082).
        repetition_penalty: logits of tokens seen in the prompt or the answer are divided by it where they are positive,
            and multiplied where they are negative (CTRL, arXiv 1909.05858, section 4.1).
        logit_bias: numbers that are added to the logits of tokens, by id.
        seed: the seed of the random numbers; None for another one at every call.

    Raises:
        UsageError: where a value is out of bounds.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, good, bounds in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0"),
            ("logit_bias", all(map(math.isfinite, self.logit_bias.values())), "finite numbers"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "between 0 and 2^63 - 1"),
        ):
            if not good:
                raise UsageError(f"{name} must be {bounds}, not {getattr(self, name)}.")


class Sampler:
    """Samples tokens for sequences whose prompts are given; each has random numbers of its own, all from one seed.

    So what a sequence gets depends on its logits and the seed, not on what else is in the batch.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int, prompts: Sequence[Sequence[int]]) -> None:
        self.options = options
        seed = secrets.randbits(63) if options.seed is None else options.seed
        self._random = [np.random.default_rng(seed) for _ in prompts]
        self._bias_V = _bias(options.logit_bias, vocab_size)
        self._seen_BV: npt.NDArray[np.bool_] | None = None
        if options.repetition_penalty != 1:
            self._seen_BV = np.zeros((len(prompts), vocab_size), np.bool_)
            for row, prompt in enumerate(prompts):
                self._seen_BV[row, prompt] = True

    def draw(self, logits_BV: Numbers, rows: Sequence[int]) -> list[int]:
        """Sample a token for each of the sequences with the numbers `rows`.

        Raises:
            MoekitError: where logits are NaN or infinite.
        """
        seen_BV = None if self._seen_BV is None else self._seen_BV[rows]
        logits_BV = adjusted(logits_BV, self._bias_V, seen_BV, self.options.repetition_penalty)
        if not np.isfinite(logits_BV.max(-1)).all():
            raise MoekitError("The model's logits are not numbers: its weights are broken, or overflow in their type.")
        if self.options.temperature == 0:
            tokens_B = logits_BV.argmax(-1)
        else:
            uniform_B = np.array([self._random[row].random() for row in rows])
            tokens_B = pick(*candidates(logits_BV, self.options), uniform_B)
        if self._seen_BV is not None:
            self._seen_BV[rows, tokens_B] = True
        return [int(token) for token in tokens_B]


def adjusted(
    logits_BV: Numbers, bias_V: Numbers | None, seen_BV: npt.NDArray[np.bool_] | None, penalty: float
) -> Numbers:
    """Apply bias and repetition penalty to the logits."""
    if bias_V is not None:
        logits_BV = logits_BV + bias_V
    if seen_BV is not None:
        penalized_BV = np.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = np.where(seen_BV, penalized_BV, logits_BV)
    return logits_BV


def candidates(logits_BV: Numbers, options: SamplingOptions) -> tuple[Doubles, Ids]:
    """Apply temperature, top-k, top-p and min-p.

    Of tokens that are equally probable at the border of top-k exactly as many stay as make k.

    Returns:
        logits_BN, -inf for what is left out, and ids_BN.
    """
    # Less the greatest one first: a temperature near 0 then takes the others to -inf, and not all of them to infinity.
    logits_BN = logits_BV.astype(np.float64)
    logits_BN -= logits_BN.max(-1, keepdims=True)
    with np.errstate(over="ignore"):
        logits_BN /= options.temperature
    ids_BN = np.broadcast_to(np.arange(logits_BN.shape[1]), logits_BN.shape)
    if 0 < options.top_k < logits_BN.shape[1]:
        ids_BN = np.argpartition(-logits_BN, options.top_k - 1, -1)[:, : options.top_k]
        logits_BN = np.take_along_axis(logits_BN, ids_BN, -1)
    if options.top_p < 1:
        order_BN = np.argsort(-logits_BN, -1, kind="stable")
        logits_BN, ids_BN = np.take_along_axis(logits_BN, order_BN, -1), np.take_along_axis(ids_BN, order_BN, -1)
        share_BN = softmax(logits_BN)
        logits_BN = np.where(share_BN.cumsum(-1) - share_BN >= options.top_p, -np.inf, logits_BN)
    if options.min_p > 0:
        least_B1 = logits_BN.max(-1, keepdims=True) + math.log(options.min_p)
        logits_BN = np.where(logits_BN < least_B1, -np.inf, logits_BN)
    return logits_BN, ids_BN


def pick(logits_BN: Doubles, ids_BN: Ids, uniform_B: Doubles) -> Ids:
    """Choose tokens_B: of each row the candidate in whose part of [0, 1) the uniform number lies."""
    mass_BN = softmax(logits_BN).cumsum(-1)
    # Scaled to the sum as it was rounded: no number may lie beyond the last candidate that has a probability.
    place_B = [
        np.searchsorted(mass_N, uniform * mass_N[-1], side="right")
        for mass_N, uniform in zip(mass_BN, uniform_B, strict=True)
    ]
    places_B1 = np.minimum(place_B, ids_BN.shape[1] - 1)[:, None]
    return np.take_along_axis(ids_BN, places_B1, -1)[:, 0]


def _bias(bias: Mapping[int, float], vocab_size: int) -> Numbers | None:
    if not bias:
        return None
    for id_ in bias:
        if not 0 <= id_ < vocab_size:
            raise UsageError(f"--logit-bias names token {id_}, and the model has {vocab_size:,}, counted from 0.")
    bias_V = np.zeros(vocab_size, np.float32)
    bias_V[list(bias)] = list(bias.values())
    return bias_V
