"""What this machine has for running models: measured where it can be, else read from the system."""

import mmap
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from moekit.core.errors import UsageError
from moekit.core.hardware import hardware
from moekit.kernels import native
from moekit.kernels.native.direct_reading import DirectReader, disk_speed

# What kernels make use of, as Linux names them in /proc/cpuinfo.
_USEFUL = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_LARGEST_SAMPLE = 512_000_000
_DISK_SAMPLE = 128_000_000 // mmap.PAGESIZE * mmap.PAGESIZE
_CHUNK = 8 << 20
# What experts are read in: from those of fine-grained mixtures in few bits to those of Mixtral.
_PIECES = (1 << 18, 1 << 20, 1 << 22, 1 << 24)
_READERS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class GPU:
    """A CUDA device, its name and its memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ReadSpeed:
    """Bytes a second at which so many threads read pieces of so many bytes from places all over a file."""

    piece: int
    threads: int
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class FileReading:
    """How fast a file is read, as experts that stay on disk are.

    Attributes:
        path: the file.
        size: its bytes.
        is_direct: False where the file system gives no way around the page cache, which was then measured.
        speeds: for pieces of several sizes and several numbers of threads.
    """

    path: str
    size: int
    is_direct: bool
    speeds: tuple[ReadSpeed, ...]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found out about this machine.

    Attributes:
        instruction_sets: those that kernels make use of.
        memory_available_bytes: the memory that can be taken now.
        read_bandwidth: bytes per second at which memory is read, measured.
        disk_bandwidth: bytes per second at which the disk is read, measured; None where there is no room to measure.
        disk_is_direct: False where the file system gives no way around the page cache, which was then measured.
        kernels: what computes quantised and 16-bit weights, `native (<instruction set>)` or `torch`.
        advice: what would make it faster, a sentence each.
    """

    system: str
    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    memory_available_bytes: int
    read_bandwidth: float
    disk_bandwidth: float | None
    disk_is_direct: bool
    gpus: tuple[GPU, ...]
    torch: str
    torch_threads: int
    kernels: str
    advice: tuple[str, ...]


def read_file(path: Path) -> FileReading:
    """Measure how fast a file is read, in two or three seconds.

    Raises:
        UsageError: where there is no such file, or it is too small to tell.
        MoekitError: where it cannot be read.
    """
    if not native.available():
        raise UsageError("The native kernels, which read experts from files, are not there: `moekit doctor` says why.")
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}.")
    size = path.stat().st_size
    pieces = [piece for piece in _PIECES if 4 * piece <= size]
    if not pieces:
        raise UsageError(f"{path} has {size:,} bytes; to measure how it is read takes {4 * _PIECES[0]:,} or more.")
    return FileReading(
        path=str(path),
        size=size,
        is_direct=DirectReader(path).direct,
        speeds=tuple(
            ReadSpeed(
                piece=piece, threads=threads, bytes_per_second=disk_speed(path, piece, threads=threads, seconds=0.15)
            )
            for piece in pieces
            for threads in _READERS
        ),
    )


def diagnose() -> Diagnosis:
    """Look at this machine; it takes a second or two, some memory, and a file of 128 MB for as long."""
    machine = hardware()
    instruction_set = native.instruction_set() if native.available() else None
    threads = native.threads()
    gpus = _gpus()
    disk, direct = disk_bandwidth(Path(tempfile.gettempdir()))
    return Diagnosis(
        system=machine.system,
        cpu=machine.cpu,
        cores=machine.cores,
        instruction_sets=instruction_sets(),
        memory_bytes=machine.memory_bytes,
        memory_available_bytes=psutil.virtual_memory().available,
        read_bandwidth=read_bandwidth(),
        disk_bandwidth=disk,
        disk_is_direct=direct,
        gpus=gpus,
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
        kernels="torch" if instruction_set is None else f"native ({instruction_set})",
        advice=_advice(machine.cores, threads, instruction_set, gpus),
    )


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """List the instruction sets that kernels make use of and this processor has.

    The list is empty where the system does not say (Linux does).
    """
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return ()
    has = found[1].split() if found else []
    return tuple(name for name in _USEFUL if name in has)


def read_bandwidth() -> float:
    """Measure the bytes a second at which all threads together read memory.

    It is the best of several passes over more than a cache holds.
    """
    size = min(_LARGEST_SAMPLE, psutil.virtual_memory().available // 8)
    if native.available():
        return native.read_bandwidth(size)
    sample = torch.zeros(size // 4)
    fastest = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        sample.sum()
        fastest = min(fastest, time.perf_counter() - begin)
    return 4 * len(sample) / fastest


def disk_bandwidth(folder: Path) -> tuple[float | None, bool]:
    """Measure the bytes a second at which a file in `folder` is read.

    Returns:
        The bytes a second, or None where the folder cannot be written to or is full; and whether the file was read
        around the page cache.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="moekit-doctor-") as file:
            # Random bytes: a file system may pack others.
            block = os.urandom(_CHUNK)
            for begin in range(0, _DISK_SAMPLE, _CHUNK):
                file.write(block[: _DISK_SAMPLE - begin])
            file.flush()
            os.fsync(file.fileno())
            return _read_directly(file.name)
    except OSError:
        return None, False


def _read_directly(file: str) -> tuple[float, bool]:
    descriptor, direct = _open_direct(file)
    try:
        with mmap.mmap(-1, _CHUNK) as buffer:  # memory that begins at a page, as reading directly wants it
            done, begin = 0, time.perf_counter()
            while count := os.preadv(descriptor, [buffer], done):
                done += count
            return done / (time.perf_counter() - begin), direct
    finally:
        os.close(descriptor)


def _open_direct(file: str) -> tuple[int, bool]:
    if hasattr(os, "O_DIRECT"):
        try:
            return os.open(file, os.O_RDONLY | os.O_DIRECT), True
        except OSError:
            pass  # not every file system has it
    return os.open(file, os.O_RDONLY), False


def _gpus() -> tuple[GPU, ...]:
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(GPU(name=one.name, memory_bytes=one.total_memory) for one in properties)


def _advice(cores: int, threads: int, instruction_set: str | None, gpus: tuple[GPU, ...]) -> tuple[str, ...]:
    sentences = []
    if instruction_set is None:
        sentences.append(
            "The native kernels are not there, and torch computes everything: install CMake and a compiler for C++17, "
            "then install moekit again."
        )
    elif instruction_set == "portable":
        sentences.append("This processor has no instruction set that the native kernels are written for.")
    if threads < cores:
        sentences.append(f"torch uses {threads} of {cores} cores: unset OMP_NUM_THREADS and the like.")
    if gpus:
        sentences.append("The GPU is not used to generate text; training uses it.")
    return tuple(sentences)
