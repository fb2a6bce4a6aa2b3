"""Quantities as people type them."""

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


def _scaled(text: str, units: dict[str, float], default: str) -> float | None:
    """Read a positive, finite number with one of `units` behind it; gives None where it is none."""
    text = text.strip()
    number, unit = (text[:-1], text[-1]) if text[-1:] and text[-1:] in units else (text, default)
    try:
        value = float(number) * units[unit]
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
