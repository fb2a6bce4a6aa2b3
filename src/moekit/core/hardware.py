"""What the machine offers, measured or read from the system."""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine: the processor's name, its cores, its memory, and the operating system.

    Attributes:
        cores: those that this process may use.
    """

    cpu: str
    cores: int
    memory_bytes: int
    system: str


def hardware() -> Hardware:
    """Read from the system what the machine offers."""
    return Hardware(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(terse=True),
    )


def fastest_precision() -> Precision:
    """Find the faster type for matrix products here, measured in a few milliseconds.

    It is bfloat16 where its products run at least 1.3 times as fast as fp32's. Asking for an instruction set would not
    do: some processors convert bf16 in software, slower than fp32.
    """
    import torch

    seconds = {dtype: _matrix_product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return "bfloat16" if seconds[torch.float32] > 1.3 * seconds[torch.bfloat16] else "float32"


def resident_bytes() -> int:
    """Measure the memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak_resident() -> None:
    """Let `peak_resident_bytes` count from now on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak then also covers what came before: an upper bound


def peak_resident_bytes() -> int:
    """Measure the most memory that this process has held, since its start or the last reset."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource  # not on every system, and only needed where /proc is missing

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else resident_bytes()


def process_started() -> float:
    """Find when this process began, on the clock of `time.perf_counter`; the time before its first line counts too."""
    return time.perf_counter() - (time.time() - psutil.Process().create_time())


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _matrix_product_seconds(dtype: "torch.dtype", size: int = 512) -> float:
    """Measure the fastest of several products of two square matrices, so that noise cannot make it look slow."""
    import torch

    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    fastest = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        torch.mm(a, b)
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest
