"""The frequencies of rotary positions, which follow from the configuration alone."""

import math
from typing import NamedTuple

from moekit.config.attention import LinearScaling, Llama3Scaling, RopeScaling, RotaryConfig, YarnScaling


class Frequencies(NamedTuple):
    """The rotary frequencies of a head.

    Attributes:
        values: radians a position, for each of its C/2 pairs.
        magnitude: the factor of cosines and sines.
    """

    values: list[float]
    magnitude: float


def rotary_frequencies(head_width: int, config: RotaryConfig) -> Frequencies:
    """Compute base^(-2i/C) for pair i (Su et al., arXiv 2104.09864, eq. 15), scaled as the configuration says."""
    plain = [config.rope_base ** (-2 * index / head_width) for index in range(head_width // 2)]
    return _scaled(plain, config.rope_base, config.rope_scaling)


def _scaled(plain: list[float], base: float, scaling: RopeScaling | None) -> Frequencies:
    match scaling:
        case None:
            return Frequencies(plain, 1.0)
        case LinearScaling():
            return Frequencies([frequency / scaling.factor for frequency in plain], 1.0)
        case Llama3Scaling():
            return Frequencies([_llama3(frequency, scaling) for frequency in plain], 1.0)
        case YarnScaling():
            magnitude = scaling.magnitude or (0.1 * math.log(scaling.factor) + 1.0)
            return Frequencies(_yarn(plain, base, scaling), magnitude)


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    turns = scaling.context * frequency / (2 * math.pi)  # in the context of the pretraining
    kept = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def _yarn(plain: list[float], base: float, scaling: YarnScaling) -> list[float]:
    width = 2 * len(plain)

    def dimension_of(turns: float) -> float:
        """Find where, among the dimensions, frequencies turn so often in the context of the pretraining."""
        return width * math.log(scaling.context / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension_of(scaling.fast), dimension_of(scaling.slow)
    if scaling.whole_ends:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    span = last - first or 0.001
    scaled = []
    for index, frequency in enumerate(plain):
        divided = min(max((index - first) / span, 0.0), 1.0)
        scaled.append(divided * frequency / scaling.factor + (1 - divided) * frequency)
    return scaled
