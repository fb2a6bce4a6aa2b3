"""Rotary positions: queries and keys turned by an angle that grows with their position."""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Turns the pairs (i, i + C/2) of each head by position · base^(-2i/C) (Su et al., arXiv 2104.09864, eq. 34).

    The half-split layout is that of Hugging Face's Llama checkpoints. Angles are kept in fp32.
    """

    cos_TC: Tensor
    sin_TC: Tensor

    def __init__(self, head_width: int, context: int, base: float) -> None:
        super().__init__()
        frequency_C = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle_TC = torch.outer(torch.arange(context, dtype=torch.float64), frequency_C).repeat(1, 2)
        self.register_buffer("cos_TC", angle_TC.cos().float(), persistent=False)
        # The first half of each head gets -sin: rotating halves is then one roll and no negation.
        angle_TC[:, : head_width // 2] *= -1
        self.register_buffer("sin_TC", angle_TC.sin().float(), persistent=False)

    def forward(self, x_BHTC: Tensor, start: int = 0) -> Tensor:
        """Turn x_BHTC, whose first token stands at position `start`; gives the dtype of x."""
        end = start + x_BHTC.shape[-2]
        cos_TC, sin_TC = self.cos_TC[start:end].to(x_BHTC.dtype), self.sin_TC[start:end].to(x_BHTC.dtype)
        return x_BHTC * cos_TC + x_BHTC.roll(x_BHTC.shape[-1] // 2, -1) * sin_TC
