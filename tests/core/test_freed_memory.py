"""Freed memory is used again instead of coming from the kernel page by page."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
from moekit.core.freed_memory import keep_freed_memory
{call}
bytearray(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    bytearray(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)
def test_blocks_that_are_freed_are_used_again() -> None:
    """A process of its own each time: what is set stays set. glibc itself keeps such blocks from some size on."""
    command = FAULTS.format(call="keep_freed_memory()")
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert int(shown.stdout) < 100  # of 16,384 pages
