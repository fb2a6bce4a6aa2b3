"""The parts of a layout as pairs of views, checked, and cut into pieces that are copied at once."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.checkpoint.layout import Part, Stored, whole

# Pieces of a stored tensor that are at least this long are worth a read of their own.
_WORTH_A_READ = 256 << 10


class LayoutError(AssertionError):
    """A layout contradicts itself or the parameters: a mistake in moekit, whatever the file holds."""


@dataclass(frozen=True)
class Pair:
    """Two views of one shape: `ours`, of a parameter, and `stored`, the same of the stored tensor on "meta".

    Offset and strides of `stored` say where in the file each element lies.
    """

    ours: Tensor
    stored: Tensor

    def span(self) -> int:
        """Count the elements of the stored tensor from the first to the last of the view, those between included."""
        if not self.stored.numel():
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.stored.shape, self.stored.stride(), strict=True))


def check_cover(layout: Sequence[Stored], parameters: Mapping[str, Tensor]) -> None:
    """Raise LayoutError unless the tensors that are not optional make up each parameter completely and once.

    It counts elements: two parts over the same rows that miss others are not found.
    """
    names = Counter(entry.name for entry in layout)
    if layout and names.most_common(1)[0][1] > 1:
        raise LayoutError(f"{names.most_common(1)[0][0]!r} is in the layout twice")
    covered: Counter[str] = Counter()
    for entry in layout:
        for part, pair in zip(entry.parts, pairs(entry, parameters), strict=True):
            covered[part.ours] += 0 if entry.optional else pair.ours.numel()
    for name, parameter in parameters.items():
        if covered[name] != parameter.numel():
            raise LayoutError(f"the layout covers {covered[name]} of the {parameter.numel()} elements of {name!r}")


def stored_shape(entry: Stored, parameters: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Find the shape that the stored tensor has to have."""
    if entry.shape is not None:
        return entry.shape
    if len(entry.parts) != 1 or entry.parts[0].of_stored is not whole:
        raise LayoutError(f"{entry.name!r} is of several parts or a part of it is left out, so it needs a shape")
    return tuple(_of_ours(entry, entry.parts[0], parameters).shape)


def pairs(entry: Stored, parameters: Mapping[str, Tensor]) -> list[Pair]:
    """Find the parts of a stored tensor as pairs of views.

    Raises:
        LayoutError: where a part is no view, the shapes of a part differ, or the parts are not all of the tensor.
    """
    shape = stored_shape(entry, parameters)
    tensor = torch.empty(shape, device="meta")
    found = []
    for part in entry.parts:
        ours, of_stored = _of_ours(entry, part, parameters), part.of_stored(tensor)
        if not _same_memory(of_stored, tensor):
            raise LayoutError(f"a part of {entry.name!r} is a copy and no view of the stored tensor")
        if ours.shape != of_stored.shape:
            raise LayoutError(
                f"a part of {entry.name!r} is {tuple(of_stored.shape)} there and {tuple(ours.shape)} in {part.ours!r}"
            )
        found.append(Pair(ours, of_stored))
    if sum(pair.ours.numel() for pair in found) != math.prod(shape):
        raise LayoutError(f"the parts of {entry.name!r} are not the whole of it")
    return found


def pieces(pair: Pair, itemsize: int, limit: int) -> Iterator[Pair]:
    """Cut a pair into pieces that span at most `limit` bytes of the stored tensor, in its order.

    Long runs in the file become pieces that are contiguous there, so that nothing between them is read; where the runs
    are short (every other column) a piece spans what lies between.
    """
    # In the order of the file: the first dimension is the one whose steps are longest.
    steps = pair.stored.stride()
    order = sorted(range(len(steps)), key=lambda dimension: -steps[dimension])
    yield from _cut(Pair(pair.ours.permute(order), pair.stored.permute(order)), itemsize, limit)


def _cut(pair: Pair, itemsize: int, limit: int) -> Iterator[Pair]:
    if not pair.stored.numel():
        return
    split_runs = not pair.stored.is_contiguous() and _run(pair.stored) * itemsize >= _WORTH_A_READ
    if not pair.stored.dim() or (pair.span() * itemsize <= limit and not split_runs):
        yield pair
        return
    row_bytes = max(pair.stored.stride(0), Pair(pair.ours[0], pair.stored[0]).span()) * itemsize
    step = 1 if split_runs else max(1, limit // row_bytes)
    for first in range(0, len(pair.stored), step):
        if step == 1:
            yield from _cut(Pair(pair.ours[first], pair.stored[first]), itemsize, limit)
        else:
            yield Pair(pair.ours[first : first + step], pair.stored[first : first + step])


def _run(tensor: Tensor) -> int:
    """Count how many elements follow each other without a gap."""
    run = 1
    for n, step in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if n != 1 and step != run:
            break
        run *= n
    return run


def _of_ours(entry: Stored, part: Part, parameters: Mapping[str, Tensor]) -> Tensor:
    if part.ours not in parameters:
        raise LayoutError(f"{entry.name!r} is part of {part.ours!r}, which the model doesn't have")
    parameter = parameters[part.ours].detach()
    view = part.of_ours(parameter)
    if not _same_memory(view, parameter):
        raise LayoutError(f"a part of {entry.name!r} is a copy and no view of {part.ours!r}")
    return view


def _same_memory(view: Tensor, tensor: Tensor) -> bool:
    # Not data_ptr: on "meta" there is none.
    return bool(view.untyped_storage()._cdata == tensor.untyped_storage()._cdata)
