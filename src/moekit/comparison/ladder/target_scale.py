"""The scale that a user asks about: FLOPs, or parameters that become FLOPs by a stated rule."""

import re
from dataclasses import dataclass

from moekit.comparison.ladder.published_laws import OPTIMAL_TOKENS_PER_PARAMETER
from moekit.core.errors import UsageError
from moekit.core.formatting import parameters_text

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_FEWEST_FLOPS = 1e9


@dataclass(frozen=True)
class TargetScale:
    """Training FLOPs that are asked about.

    asked: as it was typed. rule: how parameters became FLOPs; None where FLOPs were given.
    """

    asked: str
    flops: float
    rule: str | None = None


def parse_scale(text: str) -> TargetScale:
    """Read `1e21`, `3e20flops`, or parameters: `70b`, `350M`, `1.5T`.

    Parameters become the FLOPs of a compute-optimal dense model of that size, 6 N D with 20 tokens a parameter
    (Besiroglu et al., arXiv 2404.10102).

    Raises:
        UsageError: for anything else, and for `8x7b`, which says neither active parameters nor FLOPs.
    """
    asked = text.strip()
    lowered = asked.lower().replace(" ", "").removesuffix("flops").removesuffix("flop")
    if re.fullmatch(r"\d+x[\d.]+[kmbt]?", lowered):
        raise UsageError(
            f"{asked!r} names experts, not a scale: give a mixture's active parameters (Mixtral 8x7B: 12.9b), or FLOPs."
        )
    unit = _UNITS.get(lowered[-1:]) if lowered == asked.lower().replace(" ", "") else None
    try:
        number = float(lowered[:-1] if unit else lowered)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e40:
        raise UsageError(f"Cannot read the scale {asked!r}; write FLOPs like 1e21, or parameters like 70b.")
    if unit:
        size = number * unit
        flops = 6 * OPTIMAL_TOKENS_PER_PARAMETER * size**2
        rule = (
            f"a compute-optimal model of {parameters_text(size)} parameters: 6 N D with "
            f"{OPTIMAL_TOKENS_PER_PARAMETER} tokens a parameter (arXiv 2404.10102)"
        )
        return TargetScale(asked, flops, rule)
    if number < _FEWEST_FLOPS:
        raise UsageError(f"{asked} FLOPs train nothing; write FLOPs like 1e21, or parameters with a unit, like 70b.")
    return TargetScale(asked, number)
