"""The tensors of a GGUF file as those of a folder: read by name, packed ones unpacked as they are read."""

import math
from collections.abc import Container
from functools import partial

import torch
from torch import Tensor

from moekit.checkpoint.gguf import GGUFFile
from moekit.checkpoint.stored_tensors import StoredTensors, TensorInfo

# Types of one number, which are read as they lie.
_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def unpacked_tensors(file: GGUFFile, names: Container[str]) -> StoredTensors:
    """Give those of the file's tensors that are named; packed ones are fp32, and worth keeping in bf16.

    Reading a tensor raises MoekitError where neither moekit nor the `gguf` package knows its type.
    """
    return StoredTensors({name: _info(file, name) for name in file.tensors if name in names})


def _info(file: GGUFFile, name: str) -> TensorInfo:
    tensor = file[name]
    dtype = _PLAIN.get(tensor.type.name)
    is_packed = dtype is None
    return TensorInfo(
        file=file.file_of(name),
        dtype=dtype or torch.float32,
        shape=tensor.shape,
        start=tensor.start,
        size=math.prod(tensor.shape) * (dtype or torch.float32).itemsize,
        rows=partial(_rows, file, name) if is_packed else None,
        kept=torch.bfloat16 if is_packed else None,
    )


def _rows(file: GGUFFile, name: str, begin: int, end: int) -> Tensor:
    return torch.from_numpy(file.rows(name, begin, end))
