"""Reading a checkpoint into the parameters of a model, without a second copy of it in memory."""

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.checkpoint.layout import Stored
from moekit.checkpoint.stored_tensors import StoredTensors, TensorInfo
from moekit.checkpoint.views import Pair, check_cover, pairs, pieces, stored_shape
from moekit.core.errors import MoekitError

# Read at once, and the memory that a thread needs besides where layout or type have to change.
_PIECE_BYTES = 16 << 20
# A second thread fills pages while the first waits for memory or the disk; more only compete for bandwidth.
_THREADS = 2


def read_weights(
    parameters: Mapping[str, Tensor],
    layout: Sequence[Stored],
    tensors: StoredTensors,
    *,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Fill `parameters` with what `tensors` holds.

    Everything is checked before the first byte of a weight is read. Where types differ, values are converted as
    `Tensor.copy_` does. Optional tensors are checked and not read: other tensors cover their parts. Besides the
    parameters this takes at most 32 MB of memory.

    Args:
        parameters: real CPU tensors by our names; their values may be uninitialised.
        layout: how they and the stored tensors are made of each other.
        tensors: the stored tensors.
        on_bytes: called with the bytes of each piece read, from reading threads, one call at a time.

    Raises:
        MoekitError: naming the tensor where the folder lacks one, has one too many, or shapes or kinds of numbers
            differ, and where a file can't be read; the parameters are then partly filled.
        LayoutError: where the layout does not cover each parameter completely and once.
    """
    check_weights(parameters, layout, tensors)
    for parameter in parameters.values():
        _ask_for_huge_pages(parameter)
    _Reading(tensors, _work(parameters, layout, tensors), on_bytes).run()


def check_weights(parameters: Mapping[str, Tensor], layout: Sequence[Stored], tensors: StoredTensors) -> None:
    """Check what `read_weights` checks before it reads, and raise the same; `parameters` may be on the meta device."""
    check_cover(layout, parameters)
    _check_names(layout, tensors)
    for entry in layout:
        if entry.name in tensors:
            _check_tensor(entry, parameters, tensors[entry.name])


def dtype_of(layout: Sequence[Stored], tensors: StoredTensors) -> dict[str, torch.dtype]:
    """Find the type that each of our parameters has in the folder, by our name.

    Where its parts have several types, it is the smallest type that holds the values of all (torch.promote_types; two
    8-bit floats, or one and another type, meet as bfloat16 does). Numbers that were unpacked have the type in which
    they are worth keeping. Parameters of which the folder holds nothing are left out.
    """
    found: dict[str, torch.dtype] = {}
    for entry in layout:
        if entry.name in tensors and not entry.optional:
            dtype = tensors[entry.name].kept or tensors[entry.name].dtype
            found |= {part.ours: promoted(found.get(part.ours, dtype), dtype) for part in entry.parts}
    return found


def promoted(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """Find the type for values of both; torch knows none for 8-bit floats, which bfloat16 holds exactly."""
    if a is b:
        return a
    eight_bits = (torch.float8_e4m3fn, torch.float8_e5m2)
    a, b = (torch.bfloat16 if dtype in eight_bits else dtype for dtype in (a, b))
    return torch.promote_types(a, b)


def _check_names(layout: Sequence[Stored], tensors: StoredTensors) -> None:
    missing = [entry.name for entry in layout if not entry.optional and entry.name not in tensors]
    if missing:
        folder = next((str(info.file.parent) for info in tensors.values()), "The folder")
        raise MoekitError(f"{folder} lacks the tensor {_named(missing)}; it is of another model or incomplete.")
    known = {entry.name for entry in layout}
    unexpected = [name for name in tensors if name not in known]
    if unexpected:
        file = tensors[unexpected[0]].file
        raise MoekitError(f"{file} holds an unexpected tensor {_named(unexpected)}, which the model has no place for.")


def _named(names: Sequence[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _check_tensor(entry: Stored, parameters: Mapping[str, Tensor], info: TensorInfo) -> None:
    expected = stored_shape(entry, parameters)
    if info.shape != expected:
        raise MoekitError(
            f"Tensor {entry.name!r} in {info.file} has the shape {list(info.shape)}, the model needs {list(expected)}."
        )
    for part in entry.parts:
        # Bits that need a scale to mean something would otherwise pass for weights.
        if info.dtype.is_floating_point != parameters[part.ours].dtype.is_floating_point:
            raise MoekitError(
                f"Tensor {entry.name!r} in {info.file} is of type {_dtype_text(info.dtype)}, "
                f"the model needs {_dtype_text(parameters[part.ours].dtype)}."
            )


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Piece:
    """A pair of views that is read at once, of the stored tensor `name`."""

    name: str
    dtype: torch.dtype
    pair: Pair

    def read(self, tensors: StoredTensors, scratch: Tensor) -> int:
        """Read the piece and give the bytes read; `scratch` (of bytes) holds what can't go straight to its place."""
        ours, stored = self.pair.ours, self.pair.stored
        begin, size = int(stored.storage_offset()) * self.dtype.itemsize, self.pair.span() * self.dtype.itemsize
        if ours.dtype is self.dtype and ours.is_contiguous() and stored.is_contiguous():
            tensors.read(self.name, begin, memory_of(ours))
        else:
            buffer = scratch[:size]
            tensors.read(self.name, begin, memory_of(buffer))
            ours.copy_(buffer.view(self.dtype).as_strided(stored.shape, stored.stride()))
        return size


def memory_of(tensor: Tensor) -> memoryview:
    """Give the bytes of a contiguous tensor: writable, not copied."""
    # As bytes, because numpy has no bfloat16.
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def _work(parameters: Mapping[str, Tensor], layout: Sequence[Stored], tensors: StoredTensors) -> Iterator[_Piece]:
    """List the pieces to read, in the order of the files."""
    entries = {entry.name: entry for entry in layout if not entry.optional}
    for name, info in tensors.items():
        if name in entries:
            for pair in pairs(entries[name], parameters):
                for piece in pieces(pair, info.dtype.itemsize, _PIECE_BYTES):
                    yield _Piece(name, info.dtype, piece)


class _Reading:
    """Threads that take pieces in turn until none is left or one of them fails."""

    def __init__(self, tensors: StoredTensors, work: Iterable[_Piece], on_bytes: Callable[[int], None] | None) -> None:
        self._tensors = tensors
        self._work = iter(work)
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> None:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="read-weights") as pool:
            running = [pool.submit(self._read) for _ in range(_THREADS)]
            try:
                for thread in running:
                    thread.result()
            finally:
                self._stopped.set()

    def _read(self) -> None:
        scratch = torch.empty(_PIECE_BYTES, dtype=torch.uint8)  # costs nothing where it is not written to
        try:
            # The caller's mode does not hold in this thread; in inference mode parameters of any kind can be written.
            with torch.inference_mode():
                while (piece := self._next()) is not None:
                    self._report(piece.read(self._tensors, scratch))
        finally:
            self._stopped.set()

    def _report(self, size: int) -> None:
        if self._on_bytes is not None:
            with self._lock:
                self._on_bytes(size)

    def _next(self) -> _Piece | None:
        with self._lock:
            return None if self._stopped.is_set() else next(self._work, None)


def _ask_for_huge_pages(tensor: Tensor) -> None:
    """Ask the system to back a big tensor with pages of 2 MB, where it has them: filling it then takes fewer faults."""
    huge = 2 << 20
    begin = -(-tensor.data_ptr() // huge) * huge
    size = (tensor.data_ptr() + tensor.nbytes - begin) // huge * huge
    if sys.platform == "linux" and size > 0 and tensor.is_contiguous():
        # Advice: where it is refused, nothing is lost.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
