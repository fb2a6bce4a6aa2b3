"""How the tensors of a stored model and the parameters of ours are made of each other, as data.

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
    """The view that is everything."""
    return tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """`of_ours` of our parameter or buffer named `ours` is `of_stored` of the stored tensor; their shapes are equal."""

    ours: str
    of_ours: View = whole
    of_stored: View = whole


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor of a checkpoint. Its parts together are the whole of it.

    shape: may be left out where there is one part which is the whole stored tensor.
    optional: files may lack it, as they lack the copy of a tied weight; it is not written, and its parts must
    be covered by other tensors.
    plus: what is added to our numbers where they are stored: files of GGUF hold 1 + w for norms that hold w.
    """

    name: str
    parts: tuple[Part, ...]
    shape: tuple[int, ...] | None = None
    optional: bool = False
    plus: float = 0.0


def stored(name: str, ours: str, of_ours: View = whole) -> Stored:
    """The usual case: a stored tensor that is one view of one of our parameters."""
    return Stored(name=name, parts=(Part(ours=ours, of_ours=of_ours),))
