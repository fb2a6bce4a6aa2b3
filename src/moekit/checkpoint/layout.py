"""Layouts: how the tensors of a stored model and our parameters are made of each other, as data.

A family lists its stored tensors; each is one or several parts, and a part is a view of one of our parameters. Reading
copies into those views, writing copies out of them: one list serves both ways, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

View = Callable[["Tensor"], "Tensor"]
"""Gives a view of the tensor (never a copy: it is written through); has to work on the meta device."""


def whole(tensor: "Tensor") -> "Tensor":
    """Give the tensor itself: the view that is everything."""
    return tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """A view of our tensor that equals a view of the stored one; their shapes are the same.

    Attributes:
        ours: the name of our parameter or buffer.
        of_ours: gives the view of ours.
        of_stored: gives the view of the stored tensor.
    """

    ours: str
    of_ours: View = whole
    of_stored: View = whole


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor of a checkpoint. Its parts together are the whole of it.

    Attributes:
        name: its name in the checkpoint.
        parts: the views of our parameters that it is made of.
        shape: its shape, which may be left out where there is one part which is the whole stored tensor.
        optional: files may lack it, as they lack the copy of a tied weight; it is not written, and its parts must be
            covered by other tensors.
        plus: a number that is added to ours where they are stored: files of GGUF hold 1 + w for norms that hold w.
    """

    name: str
    parts: tuple[Part, ...]
    shape: tuple[int, ...] | None = None
    optional: bool = False
    plus: float = 0.0


def stored(name: str, ours: str, of_ours: View = whole) -> Stored:
    """Describe the usual case: a stored tensor that is one view of one of our parameters."""
    return Stored(name=name, parts=(Part(ours=ours, of_ours=of_ours),))
