"""The command line in this process: what it prints and how it ends, as `moekit` would in one of its own."""

import io
import signal
import sys
from dataclasses import dataclass

import pytest

from moekit.cli import main


@dataclass(frozen=True, kw_only=True)
class Ended:
    status: int
    stdout: str
    stderr: str


def run_moekit(
    *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None, encoding: str = "utf-8"
) -> Ended:
    """Run `moekit` with these arguments and variables. encoding: of its standard streams."""
    before = signal.getsignal(signal.SIGTERM)
    out, err = io.BytesIO(), io.BytesIO()
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moekit", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding))
        patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        # Kept by a name: the command line puts another stream around its bytes, which would else be closed with it.
        own_stderr = io.TextIOWrapper(err, encoding=encoding, errors="backslashreplace")
        patch.setattr(sys, "stderr", own_stderr)
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        finally:
            signal.signal(signal.SIGTERM, before)
            sys.stdout.flush()
            sys.stderr.flush()
            shown, told = out.getvalue(), err.getvalue()
    # click writes UTF-8 where a stream can do no more than ASCII.
    read = "utf-8" if encoding == "ascii" else encoding
    return Ended(status=status, stdout=shown.decode(read), stderr=told.decode(read))
