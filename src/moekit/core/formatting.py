"""Figures as people read them: `1.7 GB` (10^9 bytes), `3 min 12 s`, `12.9 M`; texts from elsewhere, safe to show."""


def printable(text: str) -> str:
    """Take out of a text what a file, or its name, could have put in to steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def bytes_text(count: float) -> str:
    """Write a number of bytes with a decimal unit and three significant digits: `1.70 GB`."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: float) -> str:
    """Write a count with a decimal unit and three significant digits: `12.9 M`; FLOPs read the same."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E")).rstrip()


def parameters_text(count: float) -> str:
    """Write a number of parameters as the field does: `46.7 B` for thousands of millions."""
    return _scaled(count, ("", "k", "M", "B", "T")).rstrip()


def duration_text(seconds: float) -> str:
    """Write a duration: `0.8 s`, `42 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= 999.5 and index < len(units) - 1:
        value /= 1000
        index += 1
    digits = 0 if index == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {units[index]}"
