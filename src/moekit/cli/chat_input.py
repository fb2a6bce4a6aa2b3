"""What somebody types, or pipes, into `moekit chat`: messages of a line or of several."""

import sys

import click

from moekit.cli.standard_streams import decode_text

QUOTES = '"""'

_LEFT_OUT = "The message is left out; it"


def read_message() -> str | None:
    """Read the next message; None at the end of the input.

    A message is a line, or what stands between two times three quotes.

    Raises:
        UsageError: where it is not UTF-8; the next call reads the message after it.
    """
    line = _line("> ")
    if line is None or not line.lstrip().startswith(QUOTES.encode()):
        return None if line is None else decode_text(line, _LEFT_OUT)
    lines = [line.lstrip()[len(QUOTES) :]]
    while not lines[-1].rstrip().endswith(QUOTES.encode()):
        if (line := _line("... ")) is None:
            break
        lines.append(line)
    text = decode_text(b"\n".join(lines), _LEFT_OUT)
    return text.rstrip().removesuffix(QUOTES).strip("\n") if line is not None else text


def _line(prompt: str) -> bytes | None:
    """Read a line, without what ends it; None at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline()
        return line.removesuffix(b"\n").removesuffix(b"\r") if line else None
    import contextlib

    with contextlib.suppress(ImportError):  # not on every system; gives the arrow keys a meaning
        import readline  # noqa: F401
    try:
        return input(prompt).encode(sys.stdin.encoding, "surrogateescape")
    except EOFError:
        click.echo()
        return None
