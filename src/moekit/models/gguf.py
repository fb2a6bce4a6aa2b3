"""Decoders from GGUF files, as modules: every weight is unpacked to numbers."""

from collections.abc import Callable
from pathlib import Path

import torch

from moekit.checkpoint.gguf import GGUFFile
from moekit.checkpoint.layout import Stored
from moekit.checkpoint.views import check_cover, pairs, stored_shape
from moekit.families.gguf import GGUFModel, wrong_shape
from moekit.models.decoder import Decoder
from moekit.models.folder import allocate, own_tensors
from moekit.nn.meta import on_meta

_PIECE_BYTES = 16 << 20


def load_gguf(
    path: Path, dtype: torch.dtype = torch.float32, on_bytes: Callable[[int, int], None] | None = None
) -> Decoder:
    """Load the decoder in a GGUF file, in evaluation mode.

    Args:
        path: the file.
        dtype: the type of its weights.
        on_bytes: called with the bytes of the file that were read and those there are to read.

    Raises:
        MoekitError: where the file is damaged, of an architecture that moekit does not have, or not the model that its
            metadata describes.
    """
    stored = GGUFModel(path)
    with on_meta():
        model = Decoder(stored.config)
    shapes = own_tensors(model)
    check_cover(stored.layout, shapes)
    # On the meta device first: a file that lies about sizes must not make us allocate them.
    for entry in stored.layout:
        if stored.file[entry.name].shape != stored_shape(entry, shapes):
            raise wrong_shape(stored.file, entry.name, stored_shape(entry, shapes))
    allocate(model, dict.fromkeys(shapes, dtype))
    parameters, done = own_tensors(model), 0
    total = sum(stored.file[entry.name].size for entry in stored.layout)
    for entry in stored.layout:
        _fill(entry, stored.file, parameters)
        done += stored.file[entry.name].size
        if on_bytes is not None:
            on_bytes(done, total)
    return model.eval()


def _fill(entry: Stored, file: GGUFFile, parameters: dict[str, torch.Tensor]) -> None:
    """Copy a tensor into our parameter, some rows at a time, which make up whole parts of its first dimension."""
    (pair,) = pairs(entry, parameters)
    tensor = file[entry.name]
    with torch.inference_mode():
        if len(tensor.shape) == 1:
            pair.ours.copy_(torch.from_numpy(file.numbers(entry.name)).view(pair.ours.shape))
            return
        rows_each = tensor.rows // len(pair.ours)
        step = max(1, _PIECE_BYTES // (4 * rows_each * tensor.columns))
        for first in range(0, len(pair.ours), step):
            into = pair.ours[first : first + step]
            rows_RC = file.rows(entry.name, first * rows_each, (first + len(into)) * rows_each)
            into.copy_(torch.from_numpy(rows_RC).view(into.shape))
