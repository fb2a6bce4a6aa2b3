"""Small GGUF files: written by the `gguf` package, or byte by byte where no writer would write them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1")


def sample(path: Path) -> Path:
    """A file with every kind of value and a tensor of each of `TYPES`, of three, two and one dimensions."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("a.u32", 7)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "é 中")
    writer.add_uint64("a.u64", 2**40)
    writer.add_array("a.texts", ["one", "", "drei", "四"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -0.25])
    writer.add_array("a.bools", [True, False])
    draw = np.random.default_rng(0)
    for name in TYPES:
        numbers = draw.standard_normal((3, 4, 64), dtype=np.float32)
        code = GGMLQuantizationType[name]
        if name in ("F32", "F16"):
            writer.add_tensor(f"t.{name}", numbers.astype(np.float32 if name == "F32" else np.float16))
        else:
            writer.add_tensor(f"t.{name}", quantize(numbers, code), raw_dtype=code)
    writer.add_tensor("t.vector", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str | bytes) -> bytes:
    """A text as the format has it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    """A key with the number of its type and its bytes."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dimensions: tuple[int, ...], code: int = 0, offset: int = 0) -> bytes:
    """What the header says of a tensor; the dimensions are in the file's order."""
    sizes = b"".join(struct.pack("<Q", size) for size in dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", code, offset)


def file_of(path: Path, *parts: bytes, data: int = 64, **header: Any) -> Path:
    """A file of keys and tensors in that order; header: `version`, `tensors`, `keys`, where not as they are."""
    counts = struct.pack("<IQQ", header.get("version", 3), header.get("tensors", 0), header.get("keys", 0))
    body = b"GGUF" + counts + b"".join(parts)
    path.write_bytes(body + bytes(-len(body) % 32 + data))
    return path
