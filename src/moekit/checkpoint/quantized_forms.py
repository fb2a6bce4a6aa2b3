"""Folders that were quantised by other programs: two forms are unpacked, all others are told by their names.

Unpacked are fp8 with a scale for each block, as DeepSeek-V3 writes it (`X_scale_inv` beside `X`), and MXFP4, as gpt-oss
writes it (`X_blocks` and `X_scales` in place of `X`). The rules are those of transformers' `finegrained_fp8.py` and
`mxfp4.py`.

R rows and C columns of a matrix, N rows that are asked for, M matrices on end.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moekit.checkpoint.stored_tensors import StoredTensors, TensorInfo, UnknownForm

_FP8_SCALE, _FP8_BLOCK = "_scale_inv", 128
_FP8_UNUSED = ".activation_scale"  # of products in fp8, where activations are rounded to it, too
_FP4_BLOCKS, _FP4_SCALES, _FP4_NUMBERS = "_blocks", "_scales", 32
# The numbers of four bits, E2M1: two exponent bits and one of the mantissa (OCP Microscaling Formats 1.0, table 5).
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
_EXPONENT_BIAS = 127
_KEPT = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# What tensors' names end in, in each form; a folder is of the first of which it has all.
_ENDINGS: Mapping[str, tuple[str, ...]] = {
    "GPTQ": (".qweight", ".qzeros", ".g_idx"),
    "AWQ": (".qweight", ".qzeros", ".scales"),
    "bitsandbytes, 4 bits": (".absmax", ".quant_map"),
    "bitsandbytes, 8 bits": (".SCB",),
    "fp8 in a form of its own": (".weight_scale_inv",),
    "NVFP4": (".weight_scale", ".weight_scale_2"),
    "compressed-tensors": (".weight_packed", ".weight_scale"),
    "MXFP4": (_FP4_BLOCKS, _FP4_SCALES),
    "HQQ": (".W_q",),
    "EETQ": (".weight_scales",),
    "AQLM": (".codes", ".codebooks"),
    "VPTQ": (".centroids", ".indices"),
    "HIGGS": (".scales", ".tables", ".tables2"),
    "SpQR": (".dense_weights",),
    "quanto": ("._data", "._scale"),
    "torchao": ("_qdata", "_scale"),
    "EXL2": (".q_weight", ".q_scale"),
    "EXL3": (".trellis", ".suh", ".svh"),
    "QuIP#": (".Qidxs",),
    "SqueezeLLM": (".lookup_table",),
    "FP-Quant": (".dqweight",),
    "Metal": (".scales", ".qbiases"),
    "MLX": (".scales", ".biases"),
    "GPTQ or AWQ": (".qweight",),
    "one scale a tensor or row (fp8, int8 or BitNet)": (".weight_scale",),
    "fp8, one scale a tensor or row": ("_proj_scale",),
}


def quantized_form(settings: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Tell in which form a folder is quantised; None where neither its tensors nor its config.json speak of one.

    Args:
        settings: the values of config.json.
        names: the names of its tensors; none where they could not be read.
    """
    ends = tuple(names)
    for form, endings in _ENDINGS.items():
        if all(any(name.endswith(ending) for name in ends) for ending in endings):
            return form
    given = settings.get("quantization_config") or settings.get("compression_config") or settings.get("quantization")
    if not isinstance(given, dict):
        return None
    method = given.get("quant_method") or given.get("quant_algo") or ("MLX" if "quantization" in settings else None)
    return str(method)[:40] if method else "a form that its config.json does not name"


def dequantized(tensors: StoredTensors, settings: Mapping[str, Any]) -> StoredTensors:
    """Give the tensors with those unpacked that are of a known form: read as fp32, worth keeping in the model's type.

    Args:
        tensors: as they lie in the files.
        settings: the values of config.json, which say the type and, for fp8, the size of blocks.

    Raises:
        UnknownForm: where scales do not go with their tensor.
    """
    kept = _KEPT.get(str(settings.get("dtype") or settings.get("torch_dtype")), torch.bfloat16)
    infos = dict(tensors)
    for name in tensors:
        found = _fp8(tensors, name, settings, kept) or _mxfp4(tensors, name, kept)
        if found is not None:
            ours, stored_names, unpacked = found
            for one in stored_names:
                infos.pop(one)
            infos[ours] = unpacked
        elif name.endswith(_FP8_UNUSED) and f"{name.removesuffix(_FP8_UNUSED)}.weight{_FP8_SCALE}" in tensors:
            infos.pop(name)
    return tensors if len(infos) == len(tensors) else StoredTensors(infos, tensors.passed_over)


_Unpacked = tuple[str, tuple[str, ...], TensorInfo]
"""A tensor's name, those of the stored tensors that it is made of, and itself."""


def _fp8(tensors: StoredTensors, name: str, settings: Mapping[str, Any], kept: torch.dtype) -> _Unpacked | None:
    """Pair the scales of that name with their tensor."""
    ours = name.removesuffix(_FP8_SCALE)
    if ours == name or ours not in tensors or tensors[ours].dtype is not torch.float8_e4m3fn:
        return None
    info, scales = tensors[ours], tensors[name]
    block = _block_size(info, scales.shape, settings)
    if block is None:
        raise UnknownForm(
            f"The scales {name!r} in {scales.file} have the shape {list(scales.shape)}, which goes with no blocks of "
            f"{list(info.shape)} numbers."
        )
    rows = partial(_fp8_rows, tensors, ours, name, block)
    return ours, (ours, name), _as_numbers(info, info.shape, rows, kept)


def _block_size(info: TensorInfo, grid: tuple[int, ...], settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Find the rows and columns of a block; None where the grid of scales does not cover the tensor."""
    if math.prod(grid) == 1:
        return info.shape[-2:] if len(info.shape) > 1 else None  # type: ignore[return-value]
    if len(info.shape) < 2 or grid[:-2] != info.shape[:-2]:
        return None
    given = (settings.get("quantization_config") or {}).get("weight_block_size") or [_FP8_BLOCK, _FP8_BLOCK]
    sizes = []
    for count, extent, size in zip(grid[-2:], info.shape[-2:], given, strict=True):
        if count == -(-extent // size):
            sizes.append(size)
        elif count and extent % count == 0:
            sizes.append(extent // count)
        else:
            return None
    return sizes[0], sizes[1]


def _fp8_rows(tensors: StoredTensors, name: str, scale: str, block: tuple[int, int], begin: int, end: int) -> Tensor:
    info = tensors[name]
    rows, columns = info.shape[-2:]
    numbers_NC = _raw(tensors, name, begin, end, columns).float()
    scales = _raw(tensors, scale, 0, 1, math.prod(tensors[scale].shape))
    numbers = (scales.float() - _EXPONENT_BIAS).exp2() if scales.dtype is torch.uint8 else scales.float()
    across, down = -(-columns // block[1]), -(-rows // block[0])
    row_N = torch.arange(begin, end)
    grid_row_N = row_N // rows * down + row_N % rows // block[0]
    per_column_NC = numbers.view(-1, across)[grid_row_N].repeat_interleave(block[1], 1)[:, :columns]
    return numbers_NC * per_column_NC


def _mxfp4(tensors: StoredTensors, name: str, kept: torch.dtype) -> _Unpacked | None:
    """Pair the blocks of that name (M, R, blocks, 16) with their scales (M, R, blocks)."""
    ours = name.removesuffix(_FP4_BLOCKS)
    scale = ours + _FP4_SCALES
    info = tensors[name]
    if ours == name or scale not in tensors or info.dtype is not torch.uint8:
        return None
    if tensors[scale].shape != info.shape[:-1] or info.shape[-1] * 2 != _FP4_NUMBERS:
        return None
    *leading, blocks, _ = info.shape
    rows = partial(_mxfp4_rows, tensors, name, scale, blocks)
    return ours, (name, scale), _as_numbers(info, (*leading, blocks * _FP4_NUMBERS), rows, kept)


def _mxfp4_rows(tensors: StoredTensors, name: str, scale: str, blocks: int, begin: int, end: int) -> Tensor:
    """Unpack rows: the low half of a byte comes first."""
    bytes_NB = _raw(tensors, name, begin, end, blocks * _FP4_NUMBERS // 2).long()
    numbers = torch.stack([_FP4[bytes_NB & 0x0F], _FP4[bytes_NB >> 4]], -1).view(end - begin, blocks, _FP4_NUMBERS)
    exponents_NG = _raw(tensors, scale, begin, end, blocks).int() - _EXPONENT_BIAS
    return torch.ldexp(numbers, exponents_NG[..., None]).flatten(1)


def _raw(tensors: StoredTensors, name: str, begin: int, end: int, columns: int) -> Tensor:
    """Read rows of `columns` numbers as they are stored."""
    dtype = tensors[name].dtype
    found = torch.empty((end - begin) * columns * dtype.itemsize, dtype=torch.uint8)
    tensors.read(name, begin * columns * dtype.itemsize, found.numpy().data)
    return found.view(dtype).view(end - begin, columns)


def _as_numbers(info: TensorInfo, shape: tuple[int, ...], rows: Any, kept: torch.dtype) -> TensorInfo:
    size = math.prod(shape) * torch.float32.itemsize
    return TensorInfo(
        file=info.file, dtype=torch.float32, shape=shape, start=info.start, size=size, rows=rows, kept=kept
    )
