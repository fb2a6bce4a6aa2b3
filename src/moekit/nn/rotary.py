"""Rotary positions: queries and keys turned by an angle that grows with their position."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from moekit.config import LinearScaling, Llama3Scaling, RopeScaling, RotaryConfig, YarnScaling


class Turn(NamedTuple):
    """The angles of T positions, fp32: cosines, and sines of which the first half of each row is negated."""

    cos_TC: Tensor
    sin_TC: Tensor

    def __call__(self, x_BHTC: Tensor) -> Tensor:
        """x turned; gives the dtype of x."""
        # With -sin in the first half, rotating halves is one roll and no negation.
        cos_TC, sin_TC = self.cos_TC.to(x_BHTC.dtype), self.sin_TC.to(x_BHTC.dtype)
        return x_BHTC * cos_TC + x_BHTC.roll(x_BHTC.shape[-1] // 2, -1) * sin_TC


class Rotary:
    """Turns the pairs (i, i + C/2) of each head by position · base^(-2i/C) (Su et al., arXiv 2104.09864, eq. 34).

    The half-split layout is that of Hugging Face's Llama checkpoints. Nothing is kept for the whole context: a table
    for 131,072 positions takes more memory than a layer's weights.
    """

    def __init__(self, head_width: int, config: RotaryConfig) -> None:
        plain = [config.rope_base ** (-2 * index / head_width) for index in range(head_width // 2)]
        self.frequencies, self.magnitude = _scaled(plain, config.rope_base, config.rope_scaling)

    def turn(self, start: int, tokens: int, device: torch.device) -> Turn:
        """For `tokens` positions from `start`."""
        position_T = torch.arange(start, start + tokens, dtype=torch.float64, device=device)
        frequency_C = torch.tensor(self.frequencies, dtype=torch.float64, device=device)
        angle_TC = torch.outer(position_T, frequency_C)
        cos_TC, sin_TC = angle_TC.cos() * self.magnitude, angle_TC.sin() * self.magnitude
        return Turn(torch.cat((cos_TC, cos_TC), -1).float(), torch.cat((-sin_TC, sin_TC), -1).float())


def _scaled(plain: list[float], base: float, scaling: RopeScaling | None) -> tuple[list[float], float]:
    """Frequencies and magnitude after scaling."""
    match scaling:
        case None:
            return plain, 1.0
        case LinearScaling():
            return [frequency / scaling.factor for frequency in plain], 1.0
        case Llama3Scaling():
            return [_llama3(frequency, scaling) for frequency in plain], 1.0
        case YarnScaling():
            magnitude = scaling.magnitude or (0.1 * math.log(scaling.factor) + 1.0)
            return _yarn(plain, base, scaling), magnitude


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    turns = scaling.context * frequency / (2 * math.pi)  # in the context of the pretraining
    kept = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def _yarn(plain: list[float], base: float, scaling: YarnScaling) -> list[float]:
    width = 2 * len(plain)

    def dimension_of(turns: float) -> float:
        """Where, among the dimensions, frequencies turn so often in the context of the pretraining."""
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
