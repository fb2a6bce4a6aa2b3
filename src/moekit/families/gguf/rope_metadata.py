"""Rotary positions in GGUF files: keys for base and scaling, and a tensor of factors for Llama 3.1's scaling."""

import math
from collections.abc import Sequence

from moekit.checkpoint.gguf import Metadata, Written
from moekit.config import LinearScaling, Llama3Scaling, RopeScaling, RotaryConfig, YarnScaling
from moekit.families.gguf.key_defaults import get_or_default
from moekit.families.parts import yarn_magnitude

FACTORS = "rope_freqs.weight"
"""The tensor that holds, for each pair, what its frequency is divided by."""

# What published models have; the factors leave one of the three numbers free.
_LOW, _HIGH, _CONTEXT = 1.0, 4.0, 8192
_TOLERANCE = 1e-4


def read_rope(
    metadata: Metadata, prefix: str, head_width: int, context: int, factors: Sequence[float] | None
) -> RotaryConfig:
    """Read base and scaling. factors: those of the tensor, where there is one."""
    if metadata.get_as(int, f"{prefix}.rope.dimension_count", head_width) != head_width:
        raise metadata.problem(f"{prefix}.rope.dimension_count", f"is not the width of a head ({head_width})")
    base = get_or_default(metadata, float, prefix, "rope.freq_base")
    scaling = _scaling(metadata, prefix, context)
    if factors is not None and any(factor != 1 for factor in factors):
        if scaling is not None:
            raise metadata.problem(f"{prefix}.rope.scaling.type", f"and factors ({FACTORS}) are both given")
        if base <= 1 or len(factors) != head_width // 2:
            raise metadata.problem(f"{prefix}.rope.freq_base", f"and the factors ({FACTORS}) do not fit the heads")
        scaling = _of_factors(factors, base, metadata, f"{prefix}.rope.scaling")
    return RotaryConfig(rope_base=base, rope_scaling=scaling)


def write_rope(config: RotaryConfig, prefix: str, head_width: int) -> dict[str, Written]:
    """Give the keys that `read_rope` reads.

    Llama 3.1's scaling stands in the factors, as other programs know it; the keys for it are ours, where few pairs
    leave it open, and its factor is none of them: llama.cpp would divide by it.
    """
    keys: dict[str, Written] = {
        f"{prefix}.rope.dimension_count": head_width,
        f"{prefix}.rope.freq_base": float(config.rope_base),
    }
    scaling = f"{prefix}.rope.scaling"
    match config.rope_scaling:
        case LinearScaling(factor=factor):
            keys |= {f"{scaling}.type": "linear", f"{scaling}.factor": float(factor)}
        case YarnScaling() as yarn:
            keys |= {
                f"{scaling}.type": "yarn",
                f"{scaling}.factor": float(yarn.factor),
                f"{scaling}.original_context_length": yarn.context,
                f"{scaling}.yarn_beta_fast": float(yarn.fast),
                f"{scaling}.yarn_beta_slow": float(yarn.slow),
            }
            if yarn.magnitude is not None:
                keys[f"{scaling}.attn_factor"] = yarn.magnitude / yarn_magnitude(yarn.factor)
        case Llama3Scaling() as llama3:
            keys |= {
                f"{scaling}.original_context_length": llama3.context,
                f"{scaling}.low_freq_factor": float(llama3.low),
                f"{scaling}.high_freq_factor": float(llama3.high),
            }
    return keys


def rope_factors(config: RotaryConfig, head_width: int) -> list[float] | None:
    """Give what each frequency is divided by in Llama 3.1's scaling; None for any other."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return None
    return _llama3_factors(config.rope_scaling, config.rope_base, head_width // 2)


def _scaling(metadata: Metadata, prefix: str, context: int) -> RopeScaling | None:
    key = f"{prefix}.rope.scaling"
    kind = get_or_default(metadata, str, prefix, "rope.scaling.type")
    if kind not in ("none", "linear", "yarn"):
        raise metadata.problem(f"{key}.type", f"is {kind!r}, and moekit has none, linear and yarn")
    # Where both are there the newer counts, even where it says 0.
    name = "rope.scaling.factor" if f"{key}.factor" in metadata else "rope.scale_linear"
    factor = get_or_default(metadata, float, prefix, name) or 1.0
    attention_factor = get_or_default(metadata, float, prefix, "rope.scaling.attn_factor")
    if kind != "yarn":
        if attention_factor != 1:
            raise metadata.problem(f"{key}.attn_factor", f"is {attention_factor}, and moekit has that of yarn alone")
        return None if kind == "none" or factor == 1 else LinearScaling(factor=factor)
    return YarnScaling(
        factor=factor,
        context=metadata.get_as(int, f"{key}.original_context_length", context),
        fast=get_or_default(metadata, float, prefix, "rope.scaling.yarn_beta_fast"),
        slow=get_or_default(metadata, float, prefix, "rope.scaling.yarn_beta_slow"),
        magnitude=None if attention_factor == 1 else attention_factor * yarn_magnitude(factor),
    )


def _llama3_factors(scaling: Llama3Scaling, base: float, pairs: int) -> list[float]:
    factors = []
    for index in range(pairs):
        turns = scaling.context * base ** (-index / pairs) / (2 * math.pi)
        kept = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
        factors.append(1 / (kept + (1 - kept) / scaling.factor))
    return factors


def _of_factors(factors: Sequence[float], base: float, metadata: Metadata, prefix: str) -> Llama3Scaling:
    """Find the scaling that gives these factors: by our own keys, by published models, or from the mixed frequencies.

    Between the two ends a frequency keeps a share that is linear in it, which fixes low / high and context / high.
    """
    factor = max(factors)
    if not 1 < factor < math.inf or min(factors) < 1:
        raise metadata.problem(FACTORS, "holds factors that are none of Llama 3.1's scaling")
    said = Llama3Scaling(
        factor=factor,
        low=metadata.get_as(float, f"{prefix}.low_freq_factor", _LOW),
        high=metadata.get_as(float, f"{prefix}.high_freq_factor", _HIGH),
        context=metadata.get_as(int, f"{prefix}.original_context_length", _CONTEXT),
    )
    candidates = [said, Llama3Scaling(factor=factor, low=_LOW, high=_HIGH, context=_CONTEXT)]
    pairs = len(factors)
    mixed = [
        (base ** (-index / pairs) / (2 * math.pi), (1 / value - 1 / factor) / (1 - 1 / factor))
        for index, value in enumerate(factors)
        if 1 < value < factor
    ]
    if len(mixed) >= 2:
        (first, kept_first), (last, kept_last) = mixed[0], mixed[-1]
        slope = (kept_first - kept_last) / (first - last)
        start = kept_first - slope * first
        if slope > 0 and -1e6 < start < 0:
            high = _LOW * (1 - start) / -start
            context = round(slope * (high - _LOW))
            candidates += [Llama3Scaling(factor=factor, low=_LOW, high=high, context=max(context, 1))]
    for scaling in candidates:
        found = _llama3_factors(scaling, base, pairs)
        if all(abs(a - b) <= _TOLERANCE * b for a, b in zip(found, factors, strict=True)):
            return scaling
    raise metadata.problem(FACTORS, "holds factors that are none of Llama 3.1's scaling")
