"""Bits that are written come back, whatever the layout, and as the safetensors library writes and reads them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.checkpoint import sample_layout
from tests.checkpoint.sample_layout import as_stored, empty_parameters, layout, random_parameters, read_all, same_bits

from moekit.checkpoint import read_weights as read_weights_module
from moekit.checkpoint import views
from moekit.checkpoint import write_weights as write_weights_module
from moekit.checkpoint.layout import stored
from moekit.checkpoint.read_weights import dtype_of, read_weights
from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.checkpoint.write_weights import write_weights


@pytest.fixture(params=[(64, 16), (64, 1 << 20), (16 << 20, 256 << 10)], ids=["tiny", "spans", "as it is"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that all tensors here are cut, too."""
    piece, run = request.param
    monkeypatch.setattr(read_weights_module, "_PIECE_BYTES", piece)
    monkeypatch.setattr(write_weights_module, "_PIECE_BYTES", piece)
    monkeypatch.setattr(views, "_WORTH_A_READ", run)


@pytest.mark.usefixtures("_sizes")
def test_bits_come_back(tmp_path: Path) -> None:
    parameters, read = random_parameters(), empty_parameters()
    assert write_weights(tmp_path, layout(), parameters) == ["model.safetensors"]
    read_weights(read, layout(), StoredTensors.open(tmp_path))
    assert same_bits(read, parameters)


@pytest.mark.usefixtures("_sizes")
def test_the_file_is_the_library_s_to_the_byte(tmp_path: Path) -> None:
    parameters = random_parameters()
    write_weights(tmp_path, layout(), parameters)
    save_file(as_stored(parameters, layout()), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same_bits(load_file(tmp_path / "model.safetensors"), as_stored(parameters, layout()))


@pytest.mark.usefixtures("_sizes")
def test_shards(tmp_path: Path) -> None:
    parameters, read = random_parameters(), empty_parameters()
    names = write_weights(tmp_path, layout(), parameters, shard_bytes=600)
    assert names[-1] == "model.safetensors.index.json"
    assert names[0] == f"model-00001-of-{len(names) - 1:05}.safetensors"
    assert len(names) > 4
    read_weights(read, layout(), StoredTensors.open(tmp_path))
    assert same_bits(read, parameters)
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in parameters.values())
    held = {name: load_file(tmp_path / name) for name in names[:-1]}
    assert index["weight_map"] == {tensor: name for name, tensors in held.items() for tensor in tensors}
    # A shard is full: with the first tensor of the next it would be too large.
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    assert all(size <= 600 or len(tensors) == 1 for size, tensors in zip(sizes, held.values(), strict=True))


@pytest.mark.usefixtures("_sizes")
def test_values_are_converted(tmp_path: Path) -> None:
    parameters = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in sample_layout.SHAPES.items()}
    write_weights(tmp_path, layout(), parameters)
    wide = {name: torch.float32 for name, tensor in parameters.items() if tensor.is_floating_point()}
    read = empty_parameters(wide)
    read_weights(read, layout(), StoredTensors.open(tmp_path))
    assert same_bits(read, {name: tensor.to(read[name].dtype) for name, tensor in parameters.items()})


def test_parameters_of_a_module_and_inference_tensors(tmp_path: Path) -> None:
    save_file({"weight": torch.arange(6.0).view(2, 3), "bias": torch.arange(2.0)}, tmp_path / "model.safetensors")
    tensors, plain = StoredTensors.open(tmp_path), [stored("weight", "weight"), stored("bias", "bias")]
    module = torch.nn.Linear(3, 2)
    read_weights(dict(module.named_parameters()), plain, tensors)
    assert module.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    with torch.inference_mode():
        inference = {"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2)}
    read_weights(inference, plain, tensors)
    assert inference["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_types_of_ours(tmp_path: Path) -> None:
    dtypes = {
        "a": torch.bfloat16,
        "b": torch.float16,
        "c": torch.float8_e4m3fn,
        "d": torch.float8_e5m2,
        "e": torch.float8_e5m2,
        "f": torch.int8,
    }
    save_file({name: torch.zeros(2).to(dtype) for name, dtype in dtypes.items()}, tmp_path / "model.safetensors")
    tensors = StoredTensors.open(tmp_path)

    def together(names: str) -> torch.dtype:
        return dtype_of([stored(name, "ours") for name in names], tensors)["ours"]

    assert [together(names) for names in ("a", "ab", "cd", "cb", "de", "f")] == [
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
        torch.float32,
        torch.float8_e5m2,
        torch.int8,
    ]
    assert dtype_of([stored("missing", "ours")], tensors) == {}


def test_old_folders(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(4, 3)
    saved = {"base": base, "rows": base[2:], "half": torch.arange(5, dtype=torch.bfloat16), "scalar": torch.tensor(3)}
    torch.save(saved, tmp_path / "pytorch_model.bin")
    assert same_bits(read_all(tmp_path), saved)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "part.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(saved, "part.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same_bits(read_all(tmp_path), saved)


def test_progress_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_weights_module, "_PIECE_BYTES", 64)
    write_weights(tmp_path, [stored("a", "a"), stored("b", "b")], {"a": torch.randn(99), "b": torch.randn(7, 3)})
    sizes: list[int] = []
    read = {"a": torch.zeros(99), "b": torch.zeros(7, 3)}
    read_weights(read, [stored("a", "a"), stored("b", "b")], StoredTensors.open(tmp_path), on_bytes=sizes.append)
    assert sum(sizes) == 4 * (99 + 21)
    assert max(sizes) <= 64


@st.composite
def _views(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
    view = torch.arange(torch.Size(shape).numel()).view(shape)
    for dimension in range(view.dim()):
        begin, step = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        view = view[(slice(None),) * dimension + (slice(begin, None, step),)]
    return view.permute(draw(st.permutations(range(view.dim()))))


@settings(deadline=None)
@given(view=_views(), limit=st.integers(8, 400), run=st.integers(8, 200))
def test_pieces_are_all_of_a_view_once_and_small(view: torch.Tensor, limit: int, run: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_WORTH_A_READ", run)
        cut = list(views.pieces(views.Pair(torch.zeros_like(view), view), 8, limit))
    assert sorted(number for piece in cut for number in piece.stored.flatten().tolist()) == sorted(
        view.flatten().tolist()
    )
    assert all(piece.span() * 8 <= limit and piece.ours.shape == piece.stored.shape for piece in cut)
    for piece in cut:
        piece.ours.copy_(piece.stored)
    whole = views.Pair(torch.zeros_like(view), view)
    for piece in views.pieces(whole, 8, limit):
        piece.ours.copy_(piece.stored)
    assert torch.equal(whole.ours, view)


def test_the_sample_covers_each_element_once() -> None:
    counts = {name: torch.zeros(shape, dtype=torch.int64) for name, (shape, _) in sample_layout.SHAPES.items()}
    for entry in layout():
        for part in entry.parts if not entry.optional else ():
            part.of_ours(counts[part.ours]).add_(1)
    assert all(bool((count == 1).all()) for count in counts.values())


def test_no_byte_is_read_twice_where_runs_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_WORTH_A_READ", 16)
    parameters, sizes = {"group_qkv": random_parameters()["group_qkv"]}, list[int]()
    write_weights(tmp_path, [sample_layout.group_qkv()], parameters)
    read_weights(parameters, [sample_layout.group_qkv()], StoredTensors.open(tmp_path), on_bytes=sizes.append)
    assert sum(sizes) == parameters["group_qkv"].nbytes


def test_a_transposed_view_is_cut_along_the_file() -> None:
    turned = torch.empty(64, 32, device="meta").T
    cut = list(views.pieces(views.Pair(torch.empty(32, 64), turned), 4, 1024))
    assert [piece.stored.storage_offset() for piece in cut] == [8 * 32 * number for number in range(8)]
