"""Rounds every expert's number of rows up to one of few sizes, where the matrix product likes that.

oneDNN, which multiplies bfloat16 on a CPU, compiles a program for each shape that it meets (1 to 3 ms, ten times the
product itself) and keeps the last 1024. With every training step the experts' loads change, so almost every product
would compile. Rounded sizes come back; and products over a multiple of 32 rows are faster by a fifth besides.
"""

from itertools import accumulate, pairwise

import torch

from moekit.kernels.assignments import Assignments

_COMPILED_BY_SHAPE = (torch.bfloat16, torch.float16)


def padded(assignments: Assignments, device: torch.device, dtype: torch.dtype) -> Assignments:
    """The same assignments, with token 0 assigned at weight 0 to fill up each expert's rows.

    slot_S then names the true assignments only: it skips the padding.
    """
    offsets = assignments.expert_offsets
    counts = [end - begin for begin, end in pairwise(offsets)]
    rounded = [rounded_up(count) for count in counts]
    if device.type != "cpu" or dtype not in _COMPILED_BY_SHAPE or rounded == counts:
        return assignments
    new_offsets = tuple(accumulate(rounded, initial=0))
    shift_E = torch.tensor(new_offsets[:-1]) - torch.tensor(offsets[:-1])
    position_S = torch.arange(offsets[-1]) + shift_E.repeat_interleave(torch.tensor(counts))
    token_S, weight_S = assignments.token_S, assignments.weight_S
    return Assignments(
        token_S.new_zeros(new_offsets[-1]).index_copy_(0, position_S, token_S),
        weight_S.new_zeros(new_offsets[-1]).index_copy(0, position_S, weight_S),
        new_offsets,
        position_S[assignments.slot_S],
        assignments.token_offsets_T,
    )


def rounded_up(rows: int) -> int:
    """A multiple of 32, of 64 from 1024, of 128 from 2048 and so on: 16 sizes from each power of two to the next.

    Fewer than 32 rows, as in generation, stay as they are.
    """
    if rows < 32:
        return rows
    step = max(32, 1 << rows.bit_length() - 5)
    return -(-rows // step) * step
