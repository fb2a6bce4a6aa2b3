"""Norms of the residual stream."""

from typing import Literal, Self

from pydantic import model_validator

from moekit.config.config_base import Config, Positive


class NormConfig(Config):
    """RMSNorm (Zhang & Sennrich, arXiv 1910.07467), or LayerNorm with a bias.

    Attributes:
        eps: the number added to the mean square, or to the variance.
        zero_centered: whether an RMSNorm multiplies by 1 + weight, whose weights start at 0 (Gemma).
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: Positive = 1e-5
    zero_centered: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zero_centered and self.kind != "rms":
            raise ValueError("only the norm of kind rms can be zero_centered")
        return self
