"""Tensors and files whose numbers begin at a chosen place between two 64-byte boundaries."""

import json
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.alignment import ALIGNMENT

OFFSETS = (4, 8)
"""Bytes behind a boundary at which tensors of float32 in a safetensors file may begin, and products change bits."""


def shifted(tensor: Tensor, offset: int) -> Tensor:
    """A copy that begins `offset` bytes behind a 64-byte boundary."""
    memory = torch.empty(tensor.nbytes + 2 * ALIGNMENT, dtype=torch.uint8)
    begin = -memory.data_ptr() % ALIGNMENT + offset
    copy = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    assert copy.data_ptr() % ALIGNMENT == offset % ALIGNMENT
    return copy


def shift_parameters(module: torch.nn.Module, offset: int) -> None:
    """Move every parameter and buffer of a module to memory that begins `offset` bytes behind a boundary."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = shifted(tensor.data, offset)


def shift_file(file: Path, offset: int) -> None:
    """Write a safetensors file again, its data `offset` bytes behind a multiple of 64 in the file."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size])).encode()
    header += b" " * ((offset - 8 - len(header)) % ALIGNMENT)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
