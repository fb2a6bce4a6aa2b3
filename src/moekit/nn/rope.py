"""Rotary positions (rope): queries and keys rotated by an angle that grows with their position."""

from typing import NamedTuple

import torch
from torch import Tensor

from moekit.config import RotaryConfig
from moekit.config.frequencies import rotary_frequencies


class RopeAngles(NamedTuple):
    """The angles of T positions, fp32: cosines, and sines of which the first half of each row is negated."""

    cos_TC: Tensor
    sin_TC: Tensor

    def rotate(self, x_BHTC: Tensor) -> Tensor:
        """Rotate the heads of queries or keys; gives the dtype of x."""
        # With -sin in the first half, rotating halves is one roll and no negation.
        cos_TC, sin_TC = self.cos_TC.to(x_BHTC.dtype), self.sin_TC.to(x_BHTC.dtype)
        return x_BHTC * cos_TC + x_BHTC.roll(x_BHTC.shape[-1] // 2, -1) * sin_TC


class Rope:
    """Rotates the pairs (i, i + C/2) of each head by position · base^(-2i/C) (Su et al., arXiv 2104.09864, eq. 34).

    The half-split layout is that of Hugging Face's Llama checkpoints. Nothing is kept for the whole context: a table
    for 131,072 positions takes more memory than a layer's weights.
    """

    def __init__(self, head_width: int, config: RotaryConfig) -> None:
        self.frequencies, self.magnitude = rotary_frequencies(head_width, config)
        self._latest: tuple[tuple[int, int, torch.device], RopeAngles] | None = None

    def angles(self, start: int, tokens: int, device: torch.device) -> RopeAngles:
        """Give the angles of `tokens` positions from `start`; the latest are kept: training asks for no others."""
        asked = (start, tokens, device)
        latest = self._latest
        if latest is None or latest[0] != asked:
            self._latest = latest = (asked, self._computed(*asked))
        return latest[1]

    def _computed(self, start: int, tokens: int, device: torch.device) -> RopeAngles:
        position_T = torch.arange(start, start + tokens, dtype=torch.float64, device=device)
        frequency_C = torch.tensor(self.frequencies, dtype=torch.float64, device=device)
        angle_TC = torch.outer(position_T, frequency_C)
        cos_TC, sin_TC = angle_TC.cos() * self.magnitude, angle_TC.sin() * self.magnitude
        return RopeAngles(torch.cat((cos_TC, cos_TC), -1).float(), torch.cat((-sin_TC, sin_TC), -1).float())
