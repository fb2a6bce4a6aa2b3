"""Stored models as pieces of what is to be written: copied where they lie in their files, else computed."""

import math

from moekit.convert.storage.output_tensors import Copy, Made, Piece, tensor_of
from moekit.models.stored_model import StoredModel, row_width


def pieces_of(model: StoredModel, name: str, begin: int, end: int) -> list[Piece]:
    """Give rows of a parameter as pieces: copied where they lie as they are in the files."""
    runs, width = model.runs(name, begin, end), row_width(model.shapes[name])
    if runs is None:
        return [Made(lambda: model.rows(name, begin, end), (end - begin, width), model.memory_bytes(name), name)]
    return [_piece(model, name, run.begin, run.end, run.name, run.stored_begin) for run in runs]


def stored_piece(model: StoredModel, name: str, begin_row: int = 0, end_row: int | None = None) -> Piece:
    """Give rows of a stored tensor as a piece: its bytes, or computed where the adapter changes it."""
    copy = Copy(model.tensors, name, begin_row, end_row)
    if model.adapter is None or not model.adapter.touches(name):
        return copy
    # In fp32 the product and the sum, beside what is read and what comes out.
    return Made(lambda: tensor_of(copy), copy.shape, 16 * math.prod(copy.shape), f"lora {model.adapter.folder}")


def _piece(model: StoredModel, name: str, begin: int, end: int, stored: str, stored_begin: int) -> Piece:
    """Give rows that lie in one stored tensor, from its row of ours `stored_begin` on."""
    width, count = row_width(model.shapes[name]), end - begin
    each = math.prod(model.tensors[stored].shape[1:]) // width  # rows of ours in one of its own, which may be stacked
    if stored_begin % each == 0 and count % each == 0:
        return stored_piece(model, stored, stored_begin // each, (stored_begin + count) // each)
    memory = count * width * model.dtypes[name].itemsize
    return Made(lambda: model.rows(name, begin, end), (count, width), memory, f"{name} {begin}")
