"""Quantities as people type them."""

import re

from moekit.core.errors import UsageError


def parse_duration(text: str) -> float:
    """Read seconds from `90s`, `8m`, `1.5h` or a bare number of minutes; raises UsageError for anything else."""
    seconds = _scaled(text, {"s": 1.0, "m": 60.0, "h": 3600.0}, default="m")
    if seconds is None:
        raise UsageError(f"Cannot read the budget {text!r}; write it like 90s, 8m or 2h.")
    return seconds


def parse_count(text: str) -> int:
    """Read a number from `500k`, `2M`, `1.5m` or `1500000`; raises UsageError for anything else."""
    count = _scaled(text.lower(), {"k": 1e3, "m": 1e6, "b": 1e9, "": 1.0}, default="")
    if count is None:
        raise UsageError(f"Cannot read the number of tokens {text!r}; write it like 500k or 2M.")
    return round(count)


def parse_bytes(text: str) -> int:
    """Read a number of bytes from `4GB`, `512MB`, `3.5GiB` or `4G`; raises UsageError for anything else."""
    units = {"b": 1.0} | {f"{prefix}ib": 2.0**power for prefix, power in zip("kmgt", (10, 20, 30, 40), strict=True)}
    for prefix, size in zip("kmgt", (1e3, 1e6, 1e9, 1e12), strict=True):
        units |= {prefix: size, f"{prefix}b": size}
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]+)\s*", text.lower())
    count = _scaled(found[1], {"": units[found[2]]}, default="") if found and found[2] in units else None
    if count is None:
        raise UsageError(f"Cannot read the memory {text!r}; write it like 4GB, 512MB or 3.5GiB.")
    return round(count)


def _scaled(text: str, units: dict[str, float], default: str) -> float | None:
    """Read a positive, finite number with one of `units` behind it; gives None where it is none."""
    text = text.strip()
    number, unit = (text[:-1], text[-1]) if text[-1:] and text[-1:] in units else (text, default)
    try:
        value = float(number) * units[unit]
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
