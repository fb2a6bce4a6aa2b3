"""A damaged or foreign folder is refused in a sentence that names file and tensor, before weights are read."""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoint.sample_layout import rows
from torch import Tensor

from moekit.checkpoint import stored_tensors
from moekit.checkpoint.layout import Part, Stored, stored
from moekit.checkpoint.read_weights import read_weights
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.views import LayoutError
from moekit.core.errors import MoekitError, UsageError

INDEX = "model.safetensors.index.json"


def refused(folder: Path, *texts: str, kind: type[MoekitError] = MoekitError) -> None:
    with pytest.raises(kind) as caught:
        StoredTensors.open(folder)
    message = str(caught.value)
    assert all(text in message for text in texts), message
    assert message.endswith(".")
    assert message.isprintable()


def write_raw(path: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> None:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ENTRY = json.dumps(entry())
HEADERS: dict[str, tuple[str | bytes, bytes]] = {
    "no JSON": ("{", b""),
    "no object": ("[]", b""),
    "no UTF-8": (b'{"\xff": 1}', b""),
    "deep": ("[" * 100_000, b""),
    "unknown type": (json.dumps({"w": entry("F99")}), b"12345678"),
    "truncated": (json.dumps({"w": entry()}), b"1234567"),
    "longer": (json.dumps({"w": entry()}), b"123456789"),
    "gap": (json.dumps({"w": entry(), "v": entry(offsets=(9, 17))}), b"1" * 17),
    "overlap": (json.dumps({"w": entry(), "v": entry(offsets=(4, 12))}), b"1" * 12),
    "size does not fit": (json.dumps({"w": entry(shape=(3,))}), b"12345678"),
    "huge shape": (json.dumps({"w": entry(shape=(2**62, 2**62))}), b"12345678"),
    "negative": (json.dumps({"w": entry(shape=(-2,))}), b"12345678"),
    "backwards": (json.dumps({"w": entry(offsets=(8, 0))}), b"12345678"),
    "no offsets": (json.dumps({"w": {"dtype": "F32", "shape": [2]}}), b"12345678"),
    "one offset": (json.dumps({"w": entry(offsets=(8,))}), b"12345678"),
    "twice": (f'{{"w": {ENTRY}, "w": {ENTRY}}}', b"12345678"),
    "metadata twice": (f'{{"__metadata__": {{"a": "1", "a": "2"}}, "w": {ENTRY}}}', b"12345678"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(tmp_path: Path, case: str) -> None:
    header, data = HEADERS[case]
    write_raw(tmp_path / "model.safetensors", header, data)
    refused(tmp_path, str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("case", HEADERS)
def test_headers_without_the_library(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps reads inside the file does not lean on the library's checks alone."""
    if case in ("gap", "overlap", "longer"):
        pytest.skip("harmless: bytes that are not read, or read twice")
    monkeypatch.setattr(stored_tensors, "safe_open", lambda *_, **__: nullcontext())
    header, data = HEADERS[case]
    write_raw(tmp_path / "model.safetensors", header, data)
    refused(tmp_path, str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("length", [3, 10**6, 2**62, 2**64 - 1])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(tmp_path / "model.safetensors", json.dumps({"w": entry()}), b"12345678", length)
    refused(tmp_path, "model.safetensors")
    monkeypatch.setattr(stored_tensors, "safe_open", lambda *_, **__: nullcontext())
    refused(tmp_path, "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"1234567", b"\0" * 8])
def test_short_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, "model.safetensors", "download it again")


def test_types_that_torch_or_we_lack(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", json.dumps({"w": entry("C64", (1,))}), b"12345678")
    refused(tmp_path, "'w'", "model.safetensors", "'C64'")


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", json.dumps({"\x1b[2J": entry("C64", (1,))}), b"12345678")
    refused(tmp_path, "C64")
    write_raw(tmp_path / "model.safetensors", json.dumps({"w": entry("\x1b[2J")}), b"12345678")
    refused(tmp_path, "model.safetensors")


def test_no_weights(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), kind=UsageError)
    refused(tmp_path / "missing", "missing", kind=UsageError)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")  # a reader of it would wait for ever
    refused(tmp_path, "is no file")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    refused(tmp_path, "model.safetensors could not be opened: No such file")
    (tmp_path / "blob").mkdir()
    refused(tmp_path, "is no file")


def sharded(folder: Path, weight_map: object) -> None:
    save_file({"a": torch.zeros(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(3)}, folder / "two.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_that_fits(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert {name: info.shape for name, info in StoredTensors.open(tmp_path).items()} == {"a": (2,), "b": (3,)}
    # As in the cache of Hugging Face: the folder is one of links.
    cache = tmp_path / "snapshots"
    cache.mkdir()
    for name in ("one.safetensors", "two.safetensors", INDEX):
        (cache / name).symlink_to(Path("..") / name)
    assert StoredTensors.open(cache).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("weight_map", "texts"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, ["lacks 1 of the 2 files", "three.safetensors"]),
        ({"a": "one.safetensors", "b": "one.safetensors"}, ["'b'", "one.safetensors lacks"]),
        ({"a": "one.safetensors", "c": "two.safetensors"}, ["two.safetensors lacks", "'c'"]),
        ({"a": "two.safetensors", "b": "two.safetensors"}, ["'a'", "two.safetensors lacks"]),
        (["one.safetensors"], ["weight_map"]),
        ({"a": 1}, ["weight_map"]),
        (None, ["weight_map"]),
        ({"a": "one.safetensors\0"}, ["names no file in"]),
        ({"a": "\ud800"}, ["names no file in"]),
        ({"a": "\x1b[2J"}, ["names no file in"]),
        ({"a": "x" * 5000}, ["lacks 1 of the 1 files"]),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, weight_map: object, texts: list[str]) -> None:
    sharded(tmp_path, weight_map)
    refused(tmp_path, *texts)


def test_the_index_decides_what_is_a_part_of_the_model_and_where(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file({"a": torch.zeros(2), "b": torch.zeros(9)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(3), "extra": torch.ones(1)}, tmp_path / "two.safetensors")
    tensors = StoredTensors.open(tmp_path)
    assert {name: info.shape for name, info in tensors.items()} == {"a": (2,), "b": (3,)}
    assert tensors.passed_over == ("extra",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.q4_k.gguf", "GGUF file"),
        ("adapter_model.safetensors", "LoRA adapter"),
        ("consolidated.safetensors", "Mistral"),
        ("model-00001-of-00002.safetensors", "has no index"),
        ("consolidated.00.pth", "could run code"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
    ],
)
def test_weights_of_another_form_are_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, str(tmp_path), name, said, kind=UsageError)


@pytest.mark.parametrize("way", ["../{}", "{folder}/{}", "deeper/{}", "..", ".", "", "..\\{}"])
def test_an_index_that_leads_out(tmp_path: Path, way: str) -> None:
    """The file is there and fits: only its name is wrong."""
    inside = tmp_path / "inside"
    (inside / "deeper").mkdir(parents=True)
    for folder in (tmp_path, inside / "deeper"):
        save_file({"a": torch.zeros(2)}, folder / "one.safetensors")
    file = way.format("one.safetensors", folder=tmp_path)
    (inside / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    refused(inside, "'a'", "names no file in", INDEX)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"weight_map": {"a": "x", "a": "y"}}', "\ufeff{}"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path, INDEX)


def test_an_index_too_long_to_read(tmp_path: Path) -> None:
    with open(tmp_path / INDEX, "wb") as file:
        file.truncate(10**12)  # of holes
    refused(tmp_path, INDEX, "too many")


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2), "x": _Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin", "could run code")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)  # it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        ([torch.zeros(1)], "no dictionary"),
        ({1: torch.zeros(1)}, "no dictionary"),
        ({"w": {"nested": torch.zeros(1)}}, "'w'"),
        ({"w": torch.zeros(1, dtype=torch.complex64)}, "'w'"),
        ({"w": torch.zeros(2, 3).T}, "row-major"),
        ({"w": torch.eye(2).to_sparse()}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_pickles_of_something_else(tmp_path: Path, saved: object, text: str) -> None:
    torch.save(saved, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin", text)


def test_pickles_cut_short_or_old(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-300])
    refused(tmp_path, "pytorch_model.bin", "damaged")
    torch.save({"w": torch.zeros(100)}, file, _use_new_zipfile_serialization=False)
    refused(tmp_path, "pytorch_model.bin", "older than PyTorch 1.6")


SAVED = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0)}
LAYOUT = [stored("a", "a"), stored("b", "b")]


@pytest.fixture
def opened(tmp_path: Path) -> StoredTensors:
    save_file(SAVED, tmp_path / "model.safetensors")
    return StoredTensors.open(tmp_path)


def destination(a: tuple[int, ...] = (2, 3), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"a": torch.full(a, 7, dtype=dtype), "b": torch.full((4,), 7.0)}


def not_read(kind: type[Exception], text: str, read: Callable[[], None], into: Mapping[str, Tensor]) -> None:
    with pytest.raises(kind, match=text):
        read()
    assert all(bool((tensor == 7).all()) for tensor in into.values())


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ([*LAYOUT, Stored(name="c", shape=(0,), parts=(Part(ours="b", of_ours=rows(0, 0)),))], "lacks the tensor 'c'"),
        ([LAYOUT[0], stored("d", "b")], "lacks the tensor 'd'"),
        ([LAYOUT[0], Stored(name="b", parts=LAYOUT[1].parts, optional=True), stored("e", "b")], "lacks the tensor 'e'"),
    ],
)
def test_a_missing_tensor(opened: StoredTensors, layout: list[Stored], text: str) -> None:
    into = destination()
    not_read(MoekitError, text, lambda: read_weights(into, layout, opened), into)


def test_an_unexpected_tensor(opened: StoredTensors) -> None:
    into = {"a": destination()["a"]}
    not_read(MoekitError, "unexpected tensor 'b'", lambda: read_weights(into, LAYOUT[:1], opened), into)


def test_another_shape(opened: StoredTensors) -> None:
    into = destination(a=(3, 2))
    text = re.escape("'a'") + ".*" + re.escape("[2, 3], the model needs [3, 2]")
    not_read(MoekitError, text, lambda: read_weights(into, LAYOUT, opened), into)


def test_numbers_of_another_kind(opened: StoredTensors) -> None:
    into = destination(dtype=torch.int32)
    not_read(MoekitError, "'a'.*float32.*int32", lambda: read_weights(into, LAYOUT, opened), into)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ([LAYOUT[0], LAYOUT[0], LAYOUT[1]], "'a' is in the layout twice"),
        ([stored("a", "a"), stored("b", "b", rows(0, 3))], "covers 3 of the 4 elements of 'b'"),
        ([*LAYOUT, stored("c", "b", rows(1, 2))], "covers 5 of the 4 elements of 'b'"),
        ([LAYOUT[0], Stored(name="b", parts=LAYOUT[1].parts, optional=True)], "covers 0 of the 4 elements of 'b'"),
        ([stored("a", "a", lambda t: t.clone()), LAYOUT[1]], "'a' is a copy"),
        ([stored("a", "a"), stored("b", "c")], "'c', which the model doesn't have"),
        ([LAYOUT[0], Stored(name="b", shape=(5,), parts=LAYOUT[1].parts)], r"\(5,\) there and \(4,\)"),
        ([LAYOUT[0], Stored(name="b", parts=(Part(ours="b", of_stored=rows(0, 4)),))], "needs a shape"),
        ([LAYOUT[0], Stored(name="b", shape=(5,), parts=(Part(ours="b", of_stored=rows(0, 4)),))], "not the whole"),
        (
            [LAYOUT[0], Stored(name="b", shape=(4,), parts=(Part(ours="b", of_stored=lambda t: t + 0),))],
            "copy and no view of the stored",
        ),
    ],
)
def test_a_layout_that_is_wrong(opened: StoredTensors, layout: list[Stored], text: str) -> None:
    into = destination()
    not_read(LayoutError, text, lambda: read_weights(into, layout, opened), into)


def test_a_file_that_changes_after_it_was_opened(opened: StoredTensors) -> None:
    os.truncate(opened["a"].file, opened["a"].start + 3)
    with pytest.raises(MoekitError, match=r"model\.safetensors has changed"):
        read_weights(destination(), LAYOUT, opened)
    opened["a"].file.unlink()
    with pytest.raises(MoekitError, match=r"model\.safetensors could not be opened"):
        read_weights(destination(), LAYOUT, opened)


def test_reads_that_fall_short(opened: StoredTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: read(file, [buffers[0][:3]], at))
    into = destination()
    read_weights(into, LAYOUT, opened)
    assert torch.equal(into["a"], SAVED["a"])
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(MoekitError, match=r"Tensor '[ab]' could not be read from .*: the file ends early"):
        read_weights(destination(), LAYOUT, opened)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(MoekitError, match=r"Tensor '[ab]' could not be read from .*Input/output error"):
        read_weights(destination(), LAYOUT, opened)


def test_no_byte_outside_the_tensor(opened: StoredTensors) -> None:
    for begin, size in ((-1, 4), (0, 25), (24, 1)):
        with pytest.raises(ValueError, match="of the 24 of 'a'"):
            opened.read("a", begin, memoryview(bytearray(size)))
