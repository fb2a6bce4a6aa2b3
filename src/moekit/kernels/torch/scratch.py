"""Large scratch memory that is given back within a call, kept for the next call.

The C library returns allocations from 32 MB to the system when they are freed, and then the system hands out every page
anew at first touch: for rows that are written once and read once, that takes longer than the products that write them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_WORTH_KEEPING = 2**20  # bytes; less is quick to allocate

_idle: list[Tensor] = []  # as many as calls ran at a time, each as large as the largest it served


@contextmanager
def scratch(rows: int, like_TD: Tensor) -> Iterator[Tensor]:
    """Lend uninitialised memory for `rows` rows of the width, dtype and device of like_TD; nothing may keep it."""
    width = like_TD.shape[1]
    size = rows * width * like_TD.element_size()
    if not like_TD.is_cpu or size < _WORTH_KEEPING:
        yield like_TD.new_empty(rows, width)
        return
    try:
        room = _idle.pop()
    except IndexError:
        room = torch.empty(0, dtype=torch.uint8)
    if room.numel() < size:
        with torch.inference_mode(False):  # it will also serve calls outside of inference mode
            room = torch.empty(size, dtype=torch.uint8)
    yield room[:size].view(like_TD.dtype).view(rows, width)
    _idle.append(room)  # not after an error: someone may still write to it
