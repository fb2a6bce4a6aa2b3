"""Mapped files that become shorter while they are in use: a sentence and status 1, where else a signal would kill."""

import mmap
import weakref
from pathlib import Path

import numpy as np

from moekit.core.formatting import printable
from moekit.kernels.native.module import available, native


def watch(data: mmap.mmap, path: Path) -> None:
    """Watch a mapped file for as long as its mapping lives, on every thread of the process.

    A page that the file has no more cannot be given to whoever reads it, so the process ends: with one sentence that
    names the file. Without the compiled module it ends by the signal.
    """
    if not available():
        return
    module = native()
    begin = np.frombuffer(data, np.uint8).ctypes.data
    sentence = (
        f"Error: {printable(str(path))} became shorter while it was in use "
        "(a download that began again, or a full disk?); start again when it is whole.\n"
    )
    place = module.watch_mapped_file(begin, len(data), sentence)
    weakref.finalize(data, module.forget_mapped_file, place).atexit = False
