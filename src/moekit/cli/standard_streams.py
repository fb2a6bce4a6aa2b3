"""Standard input, output and error as they come: closed, broken off, full, in any encoding."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

import click

from moekit.core.errors import UsageError

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
_UNSHOWN = "moekit.unshown"


@contextmanager
def standard_streams() -> Iterator[None]:
    r"""Make the three streams usable within the block, and end the process with status 1 where output was lost.

    A stream that is closed becomes an empty one. Characters that the encoding of the output has no place for are
    written as `\u4f60`, which is said once. Bytes of the input that are no text are kept, for whoever reads them to
    tell. What standard error cannot take is lost: no work fails for it.
    """
    _open_closed_ones()
    codecs.register_error(_UNSHOWN, _Unshown())
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors=_UNSHOWN)
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr = _StandardError(
            sys.stderr.buffer, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True
        )
    try:
        yield
    except SystemExit:
        if (problem := output_problem()) is not None:
            click.echo(f"Error: {problem}", err=True)
            sys.exit(1)
        raise


def output_problem() -> str | None:
    """Say in a sentence why standard output cannot be written to; None where it can, or where its reader has left."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`, which has what it wanted
        _write_nowhere(sys.stdout)
    except OSError as error:
        _write_nowhere(sys.stdout)  # and is told once
        return f"Cannot write to standard output: {error.strerror}."
    return None


def decode_text(data: bytes, what: str) -> str:
    """Decode UTF-8, without a byte-order mark; or, what is none, by the encoding that standard input has.

    Args:
        data: the bytes.
        what: begins the error's message: `The message`.

    Raises:
        UsageError: where they are neither.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        with suppress(UnicodeDecodeError, LookupError):
            return data.decode(_own_encoding(sys.stdin))
        raise UsageError(f"{what} is not UTF-8: {error.reason} at byte {error.start}.") from error


class TextArgument(click.ParamType[str]):
    """An argument that is text and no path: bytes that are no UTF-8 are refused."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the text; fail where it is none."""
        try:
            return os.fsencode(value).decode("utf-8") if any("\udc80" <= each <= "\udcff" for each in value) else value
        except UnicodeDecodeError as error:
            self.fail(f"it is not UTF-8: {error.reason} at byte {error.start}.", param, ctx)


class _StandardError(TextIOWrapper):
    """Standard error that takes everything, where it is full or its reader has left, too."""

    def write(self, text: str) -> int:
        """Write the text, or forget it."""
        try:
            return super().write(text)
        except OSError:
            _write_nowhere(self)
            return len(text)

    def flush(self) -> None:
        """Write what is held, or forget it."""
        try:
            super().flush()
        except OSError:
            _write_nowhere(self)


class _Unshown:
    r"""Writes characters that an encoding lacks as `\u4f60`, and says so the first time."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, error: UnicodeError) -> tuple[str | bytes, int]:
        if not self._said and isinstance(error, UnicodeEncodeError):
            self._said = True
            click.echo(
                f"Standard output is in {error.encoding}, which lacks some characters: they come as \\u escapes. "
                "PYTHONIOENCODING=utf-8 shows them.",
                err=True,
            )
        return codecs.backslashreplace_errors(error)


def _own_encoding(stream: TextIO) -> str:
    """Give the encoding of a stream where somebody chose one in which bytes are text; else UTF-8."""
    name = codecs.lookup(stream.encoding or "utf-8").name
    return "utf-8" if name == "ascii" else name


def _open_closed_ones() -> None:
    """Put an empty stream in the place of each that is closed: no file that is opened later may get its number."""
    for name, mode in _MODES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the whole process
            if name == "stdout":
                click.echo("Standard output is closed: what is written there is lost.", err=True)


def _write_nowhere(stream: TextIO) -> None:
    """Let a stream that cannot be written to take the rest without an error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
