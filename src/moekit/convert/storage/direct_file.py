"""A file that is written past the system's cache."""

import errno
import fcntl
import os
from pathlib import Path


class DirectFile:
    """An open file that is written past the system's cache where that is possible.

    The cache would cost a copy of every byte, and push out the sources that are still to be read.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open or make it, cut to `size` bytes."""
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._descriptor, size)
        # Not every file system can (EINVAL), and none needs to.
        self._direct = hasattr(os, "O_DIRECT") and self._set_direct(True)

    def write(self, data: memoryview, position: int) -> None:
        """Write all of `data`, which the cache takes where its place or length is none that a disk has."""
        while data:
            try:
                done = os.pwrite(self._descriptor, data, position)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = not self._set_direct(False)
                continue
            data, position = data[done:], position + done

    def sync(self) -> None:
        """Wait until all that was written is on disk."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file, once nothing is written any more."""
        os.close(self._descriptor)

    def _set_direct(self, direct: bool) -> bool:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True
