"""Whatever is changed in a folder, it loads with the values that the libraries find there, or is refused in words."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.checkpoint.sample_layout import bits, read_all, same_bits
from torch import Tensor

from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.core.errors import MoekitError

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "c": torch.tensor(3, dtype=torch.int64),
    "d": torch.zeros(0, 5, dtype=torch.int8),
    "e": torch.arange(8).to(torch.float8_e4m3fn),
}
MANY = settings(deadline=None, max_examples=300)
FEWER = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One for all examples: hypothesis doesn't make a fresh one for each."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def loaded(folder: Path) -> dict[str, Tensor] | None:
    """None where the folder is refused; no other error and no read outside a file is let through."""
    try:
        for info in StoredTensors.open(folder).values():
            assert 0 <= info.start <= info.start + info.size <= info.file.stat().st_size
        return read_all(folder)
    except MoekitError as error:
        if not str(error).isprintable():
            raise AssertionError(repr(error)) from error
        return None


@st.composite
def mutated(draw: st.DrawFn, valid: bytes, most: int | None = None) -> bytes:
    """Some bytes changed, cut out, put in or doubled; in the first `most` bytes, where most can go wrong."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), most or len(data))))
        way = draw(st.sampled_from(["set", "digit", "cut", "insert", "end", "repeat"]))
        size = draw(st.integers(1, 8))
        if way == "set":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif way == "digit":
            digits = [i for i, byte in enumerate(data) if chr(byte).isdigit() and i < (most or len(data))]
            if digits:
                data[draw(st.sampled_from(digits))] = ord(draw(st.sampled_from("0123456789")))
        elif way == "cut":
            del data[at : at + size]
        elif way == "insert":
            data[at:at] = draw(st.binary(max_size=size))
        elif way == "end":
            del data[at:]
        else:
            data[at:at] = data[max(0, at - size) : at]
    return bytes(data)


def _valid() -> bytes:
    with tempfile.TemporaryDirectory() as path:
        save_file(TENSORS, Path(path, "x"), metadata={"format": "pt"})
        return Path(path, "x").read_bytes()


VALID = _valid()
HEADER_END = 8 + int.from_bytes(VALID[:8], "little")


def test_what_is_not_changed_loads(folder: Path) -> None:
    """Or the tests below would hold for a reader that refuses everything."""
    (folder / "model.safetensors").write_bytes(VALID)
    found = loaded(folder)
    assert found is not None
    assert same_bits(found, TENSORS)


@MANY
@given(data=st.one_of(mutated(VALID), mutated(VALID, HEADER_END)))
def test_bytes(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    found = loaded(folder)
    if found is not None:
        assert same_bits(found, load_file(folder / "model.safetensors"))


NUMBERS = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 2**65]), st.none(), st.floats(), st.text()
)


@st.composite
def headers(draw: st.DrawFn) -> dict[str, object]:
    """The valid header with some values replaced by others of the right or the wrong kind."""
    header = json.loads(VALID[8:HEADER_END])
    names = st.sampled_from(sorted(TENSORS))
    for _ in range(draw(st.integers(1, 3))):
        entry = header.get(draw(names), {})
        way = draw(st.sampled_from(["dtype", "shape", "data_offsets", "swap", "drop", "rename"]))
        if way == "dtype":
            entry["dtype"] = draw(st.sampled_from(["F32", "BF16", "I8", "U8", "BOOL", "U64", "F4", "C64", "", None]))
        elif way in ("shape", "data_offsets"):
            entry[way] = draw(st.lists(NUMBERS, max_size=3))
        elif way == "swap":
            one, other = draw(names), draw(names)
            if one in header and other in header:
                header[one], header[other] = header[other], header[one]
        else:
            held = header.pop(draw(names), None)
            if way == "rename" and held:
                header[draw(st.text())] = held
    return dict(header)


@MANY
@given(header=headers(), lie=st.integers(-9, 9))
def test_headers(folder: Path, header: dict[str, object], lie: int) -> None:
    text = json.dumps(header).encode()
    length = max(0, len(text) + (lie if abs(lie) > 7 else 0))
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + VALID[HEADER_END:])
    found = loaded(folder)
    if found is not None:
        assert same_bits(found, load_file(folder / "model.safetensors"))


SHARDS = {"one.safetensors": ["a", "b"], "two.safetensors": ["c", "d", "e"]}
INDEX = json.dumps({"metadata": {}, "weight_map": {name: file for file, names in SHARDS.items() for name in names}})


@FEWER
@given(text=st.one_of(mutated(INDEX.encode()), st.just(INDEX.encode())))
def test_indices(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as path:
        for file, names in SHARDS.items():
            save_file({name: TENSORS[name] for name in names}, Path(path, file))
        Path(path, "model.safetensors.index.json").write_bytes(text)
        found = loaded(Path(path))
        assert found is not None or text != INDEX.encode()
        # A shard that the changed index does not mention is not missed here; a model's layout misses it.
        assert all(bits(tensor) == bits(TENSORS[name]) for name, tensor in (found or {}).items())


def _pickled() -> bytes:
    with tempfile.TemporaryDirectory() as path:
        torch.save({name: tensor for name, tensor in TENSORS.items() if tensor.numel()}, Path(path, "x"))
        return Path(path, "x").read_bytes()


PICKLED = _pickled()


@FEWER
@given(data=st.one_of(mutated(PICKLED), mutated(PICKLED, 1000), st.just(PICKLED)))
def test_old_files(data: bytes) -> None:
    """Refused, or read without leaving the file: the weights of such an archive may be damaged unnoticed."""
    with tempfile.TemporaryDirectory() as path:
        Path(path, "pytorch_model.bin").write_bytes(data)
        found = loaded(Path(path))
        assert found is not None or data != PICKLED
