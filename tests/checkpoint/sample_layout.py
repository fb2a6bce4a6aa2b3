"""Small parameters and a layout with every way in which stored tensors and ours are made of each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoint.layout import Part, Stored, View, stored
from moekit.checkpoint.read_weights import dtype_of, read_weights
from moekit.checkpoint.stored_tensors import StoredTensors

# G groups, R query heads a group, C head width, D model width, E experts, F expert width
G, R, C, D, E, F = 2, 3, 4, 8, 3, 5

SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "embed": ((10, D), torch.float32),
    "norm": ((D,), torch.float16),
    "scalar": ((), torch.float32),
    "steps": ((3,), torch.int64),
    "empty": ((0, 4), torch.bfloat16),
    "flags": ((5,), torch.bool),
    "e4m3": ((4, 3), torch.float8_e4m3fn),
    "e5m2": ((3,), torch.float8_e5m2),
    "double": ((2, 2), torch.float64),
    "small": ((7,), torch.int8),
    "short": ((3,), torch.int16),
    "int": ((3,), torch.int32),
    "byte": ((3,), torch.uint8),
    "qkv": ((4 * D, D), torch.bfloat16),
    "group_qkv": ((G * (R + 2) * C, D), torch.bfloat16),
    "down": ((E, F, D), torch.bfloat16),
    "gate_up": ((E, 2 * F, D), torch.bfloat16),
}


def random_parameters() -> dict[str, Tensor]:
    """Any bits: NaNs and subnormal numbers too."""
    return {name: random_bits(shape, dtype) for name, (shape, dtype) in SHAPES.items()}


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel()
    if dtype is torch.bool:
        return torch.randint(0, 2, shape).bool()
    return torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8).view(dtype).view(shape)


def empty_parameters(dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, Tensor]:
    """Filled with ones, so that what was not read shows."""
    return {name: torch.ones(shape, dtype=(dtypes or {}).get(name, dtype)) for name, (shape, dtype) in SHAPES.items()}


def rows(begin: int, end: int) -> View:
    return lambda tensor: tensor[begin:end]


def layout() -> list[Stored]:
    several = {"qkv", "group_qkv", "down", "gate_up"}
    return [
        *(stored(f"model.{name}", name) for name in SHAPES if name not in several),
        stored("attn.q_proj", "qkv", rows(0, 2 * D)),
        stored("attn.k_proj", "qkv", rows(2 * D, 3 * D)),
        stored("attn.v_proj", "qkv", rows(3 * D, 4 * D)),
        group_qkv(),
        *(stored(f"experts.{e}.down", "down", lambda tensor, e=e: tensor[e].T) for e in range(E)),
        gate_up(),
        Stored(name="lm_head", parts=(Part(ours="embed"),), optional=True),
    ]


def group_qkv() -> Stored:
    """Falcon's: for each group its queries, a key and a value; ours has all queries, all keys, all values."""
    q, k, v = G * R * C, G * C, G * C

    def of_stored(begin: int, end: int) -> View:
        return lambda tensor: tensor.view(G, R + 2, C, D)[:, begin:end]

    def of_ours(begin: int, size: int) -> View:
        return lambda tensor: tensor[begin : begin + size].view(G, -1, C, D)

    return Stored(
        name="query_key_value",
        shape=(G * (R + 2) * C, D),
        parts=(
            Part(ours="group_qkv", of_ours=of_ours(0, q), of_stored=of_stored(0, R)),
            Part(ours="group_qkv", of_ours=of_ours(q, k), of_stored=of_stored(R, R + 1)),
            Part(ours="group_qkv", of_ours=of_ours(q + k, v), of_stored=of_stored(R + 1, R + 2)),
        ),
    )


def gate_up() -> Stored:
    """gpt-oss's: transposed, and the columns of gate and up in turn."""
    return Stored(
        name="gate_up_proj",
        shape=(E, D, 2 * F),
        parts=(
            Part(ours="gate_up", of_ours=lambda t: t[:, :F], of_stored=lambda t: t[..., ::2].transpose(1, 2)),
            Part(ours="gate_up", of_ours=lambda t: t[:, F:], of_stored=lambda t: t[..., 1::2].transpose(1, 2)),
        ),
    )


def as_stored(parameters: Mapping[str, Tensor], tensors: Sequence[Stored]) -> dict[str, Tensor]:
    """What the files should hold, put together the simple way."""
    found = {}
    for entry in tensors:
        first = entry.parts[0]
        shape = entry.shape or first.of_ours(parameters[first.ours]).shape
        found[entry.name] = torch.empty(shape, dtype=parameters[first.ours].dtype)
        for part in entry.parts:
            part.of_stored(found[entry.name]).copy_(part.of_ours(parameters[part.ours]))
    return {entry.name: found[entry.name] for entry in tensors if not entry.optional}


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder under its own name."""
    tensors = StoredTensors.open(folder)
    plain = [stored(name, name) for name in tensors]
    dtypes = dtype_of(plain, tensors)
    found = {name: torch.ones(info.shape, dtype=dtypes[name]) for name, info in tensors.items()}
    read_weights(found, plain, tensors)
    return found


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and bits(a[name]) == bits(b[name])
        for name in a
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
