"""GGUF files against the `gguf` package's reader, files that lie, and what is written."""

import logging
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.checkpoint.gguf_samples import TYPES, file_of, key, sample, tensor, text

from moekit.checkpoint.gguf import STORED_TYPES, GGUFFile, OutputTensor, Strings, gguf_bytes, write_gguf
from moekit.core.errors import MoekitError, UsageError
from moekit.kernels.packed import F32, Q4_K, Q8_0, dequantize
from moekit.kernels.packed.quantize_blocks import quantize

U32, F32_VALUE, STRING, ARRAY = 4, 6, 8, 9


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample(tmp_path_factory.mktemp("gguf") / "sample.gguf")


def test_the_table_of_types_is_the_package_s() -> None:
    theirs = {int(code): (code.name, *size) for code, size in gguf.GGML_QUANT_SIZES.items()}
    assert {code: (kind.name, kind.numbers, kind.size) for code, kind in STORED_TYPES.items()} == theirs


def test_metadata_and_tensors_are_those_that_the_package_reads(path: Path) -> None:
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if name.startswith("GGUF."):
            continue
        value = ours.metadata[name]
        value = list(value) if isinstance(value, Strings | np.ndarray) else value
        assert value == field.contents(), name
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for expected in theirs.tensors:
        found = ours[expected.name]
        assert (found.start, found.size) == (expected.data_offset, expected.n_bytes)
        assert found.shape == tuple(reversed(expected.shape.tolist()))
        assert np.array_equal(ours.bytes_of(expected.name).ravel(), expected.data.view(np.uint8).ravel())
        numbers = gguf.quants.dequantize(expected.data, expected.tensor_type)
        assert np.array_equal(ours.numbers(expected.name).ravel(), numbers.ravel())


def test_tensors_are_views_of_the_file_by_rows(path: Path) -> None:
    file = GGUFFile(path)
    packed = file.packed("t.Q8_0")
    assert (packed.type, packed.rows, packed.columns) == (Q8_0, 12, 64)
    assert np.shares_memory(packed.data_RB, file.bytes_of("t.Q8_0"))
    assert np.array_equal(file.rows("t.Q5_1", 4, 9), file.numbers("t.Q5_1").reshape(12, 64)[4:9])
    assert np.array_equal(np.concatenate([rows for _, rows in file.chunks("t.F16")]), file.rows("t.F16"))
    with pytest.raises(MoekitError, match=r"'t.Q5_1' in .* is of type Q5_1"):
        file.packed("t.Q5_1")
    with pytest.raises(MoekitError, match="lacks the tensor 'no'"):
        file["no"]
    assert set(TYPES) <= {tensor.type.name for tensor in file.tensors.values()}


@pytest.mark.parametrize(
    ("message", "parts", "header"),
    [
        ("of GGUF version 1", (), {"version": 1}),
        ("big-endian", (), {"version": 3 << 24}),
        ("do not fit the file", (), {"tensors": 2**60}),
        ("do not fit the file", (), {"keys": 2**63}),
        ("longer than the file", (key("a", STRING, struct.pack("<Q", 2**62)),), {"keys": 1}),
        ("longer than the file", (key("a", ARRAY, struct.pack("<IQ", F32_VALUE, 2**60)),), {"keys": 1}),
        ("longer than the file", (key("a", ARRAY, struct.pack("<IQQ", STRING, 2, 2**61)),), {"keys": 1}),
        ("unknown type 13", (key("a", 13, b""),), {"keys": 1}),
        ("unknown type 9", (key("a", ARRAY, struct.pack("<IQ", ARRAY, 1)),), {"keys": 1}),
        ("not UTF-8", (key("a", STRING, text(b"\xff\xfe")),), {"keys": 1}),
        ("'a' twice", (key("a", U32, bytes(4)), key("a", U32, bytes(4))), {"keys": 2}),
        ("alignment is 3", (key("general.alignment", U32, struct.pack("<I", 3)),), {"keys": 1}),
        ("must be an integer", (key("general.alignment", STRING, text("32")),), {"keys": 1}),
        ("one of 2 files of a split model", (key("split.count", U32, struct.pack("<I", 2)),), {"keys": 1}),
        ("'t' twice", (tensor("t", (4,)), tensor("t", (4,), offset=32)), {"tensors": 2}),
        ("lie over each other", (tensor("t", (16,)), tensor("u", (4,), offset=32)), {"tensors": 2}),
        ("outside the file", (tensor("t", (4,), offset=64),), {"tensors": 1}),
        ("outside the file", (tensor("t", (4,), offset=2**63),), {"tensors": 1}),
        ("outside the file", (tensor("t", (4,), offset=8),), {"tensors": 1}),
        ("outside the file", (tensor("t", (2**40, 2**40, 2**40)),), {"tensors": 1}),
        ("5 dimensions", (tensor("t", (1, 1, 1, 1, 1)),), {"tensors": 1}),
        ("no whole blocks of F32", (tensor("t", (4, 0)),), {"tensors": 1}),
        ("no whole blocks of Q8_0", (tensor("t", (16,), code=8),), {"tensors": 1}),
        ("unknown type 77", (tensor("t", (4,), code=77),), {"tensors": 1}),
    ],
)
def test_a_file_that_lies_is_one_sentence(
    message: str, parts: tuple[bytes, ...], header: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(MoekitError, match=message) as error:
        GGUFFile(file_of(tmp_path / "bad.gguf", *parts, **header))
    assert str(tmp_path / "bad.gguf") in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no model")
    for name, message in {"none": "No such file", "empty": "empty one", "text": "no GGUF", ".": "no file"}.items():
        with pytest.raises(MoekitError, match=message):
            GGUFFile(tmp_path / name)


def test_a_large_vocabulary_is_passed_quickly(tmp_path: Path) -> None:
    """The package's own reader takes more than a hundred times as long; the bound is loose: machines are busy."""
    words = b"".join(text(f"token {index}") for index in range(100_000))
    start = struct.pack("<IQ", STRING, 100_000)
    path = file_of(tmp_path / "large.gguf", key("tokenizer.ggml.tokens", ARRAY, start + words), keys=1)
    begin = time.thread_time()
    file = GGUFFile(path)
    assert time.thread_time() - begin < 0.5
    tokens = file.metadata.strings("tokenizer.ggml.tokens")
    assert tokens is not None
    assert (len(tokens), tokens[99_999], tokens[3:5]) == (100_000, "token 99999", ["token 3", "token 4"])
    assert tokens.raw()[7] == b"token 7"


def test_a_text_that_is_no_utf8_is_told_when_it_is_looked_at(tmp_path: Path) -> None:
    words = struct.pack("<IQ", STRING, 2) + text("good") + text(b"\xff")
    strings = GGUFFile(file_of(tmp_path / "t.gguf", key("a", ARRAY, words), keys=1)).metadata.strings("a")
    assert strings is not None
    assert strings[0] == "good"
    with pytest.raises(ValueError, match="not UTF-8"):
        strings[1]


def test_what_is_written_is_read_again_by_us_and_by_the_package(tmp_path: Path) -> None:
    x_RC = torch.randn(6, 512)
    packed = quantize(x_RC, Q4_K)
    tensors = [
        OutputTensor(name="m", type=Q4_K, shape=(2, 3, 512), make=lambda: iter(np.split(packed.data_RB, 3))),
        OutputTensor(name="v", type=F32, shape=(3,), make=lambda: iter([quantize(x_RC[:1, :3], F32).data_RB])),
    ]
    metadata = {"a": 1, "b": 0.5, "c": "text", "d": True, "e": ["x", "y"], "f": [1, 2], "g": [0.5]}
    out, seen = tmp_path / "out.gguf", []
    write_gguf(out, "llama", metadata, tensors, seen.append)
    assert out.stat().st_size == gguf_bytes("llama", metadata, tensors)
    assert sum(seen) == sum(tensor.size for tensor in tensors)
    file = GGUFFile(out)
    assert {
        name: list(value) if isinstance(value, Strings | np.ndarray) else value for name, value in file.metadata.items()
    } == {
        "general.architecture": "llama",
        **metadata,
    }
    assert file["m"].shape == (2, 3, 512)
    assert np.array_equal(file.rows("m"), dequantize(packed))
    theirs = gguf.GGUFReader(out).tensors
    assert np.array_equal(theirs[0].data.reshape(6, -1), packed.data_RB)
    assert np.array_equal(theirs[1].data, x_RC[0, :3].numpy())
    with pytest.raises(UsageError, match="exists already"):
        write_gguf(out, "llama", metadata, tensors)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> list[np.ndarray]:
        raise MoekitError("it broke")

    with pytest.raises(MoekitError, match="it broke"):
        write_gguf(tmp_path / "o", "llama", {}, [OutputTensor(name="m", type=F32, shape=(4,), make=broken)])
    assert list(tmp_path.iterdir()) == []


logging.getLogger("gguf").setLevel(logging.ERROR)
