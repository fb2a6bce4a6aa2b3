"""What the C library does with memory that is freed."""

import ctypes
import sys
from functools import lru_cache

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The largest that mallopt takes for memory of its own heaps; what is larger comes from the kernel each time.
_LARGEST = 32 * 2**20


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let the C library keep what is freed for whoever asks next, from now on.

    glibc gives large blocks back to the kernel, which hands them out again page by page and filled with zeros: for the
    tensors of a training step of a small model that takes a tenth to a quarter of its time. The most memory that the
    process takes at a time stays as it was. Elsewhere than on glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
