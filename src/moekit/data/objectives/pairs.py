"""Pairs of a source and a target, as translation has them, as batches. B pairs, S and T tokens of the longest."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pair_batch(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, pad: int, end: int | None = None
) -> dict[str, Tensor]:
    """Make a batch of pairs: `source` and `target`, int64, and their masks `source_real` and `target_real`.

    That is what EncoderDecoder.loss takes. Each sequence is followed by `end`, where there is one, and then by `pad` up
    to the longest of its side.

    Raises:
        ValueError: where there are no pairs, their numbers differ, or a sequence is empty even so.
    """
    if len(sources) != len(targets) or not sources:
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets are no pairs")
    batch = {}
    for name, sequences in (("source", sources), ("target", targets)):
        rows = [[*tokens] if end is None else [*tokens, end] for tokens in sequences]
        lengths = torch.tensor([len(row) for row in rows])
        if not lengths.all():
            raise ValueError(f"a {name} is empty; leave the pair out, or give an end token")
        longest = int(lengths.max())
        batch[name] = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        batch[f"{name}_real"] = torch.arange(longest) < lengths[:, None]
    return batch
