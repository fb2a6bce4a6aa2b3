"""What promises bits keeps them wherever tensors lie: shifted by 4 and 8 bytes in their file, or in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from tests.addresses import OFFSETS, shift_file
from tests.convert.dense_models import MODELS, TOKENS, save
from tests.convert.merging.merge_recipes import PROMPTS, make_models, recipe, write_recipe
from tests.training.test_training import ignore, tensors, trainer

from moekit.checkpoint.alignment import ALIGNMENT
from moekit.cli import moekit
from moekit.config import ModelConfig
from moekit.kernels.native import available, multiply, multiply_many
from moekit.kernels.packed import BF16, BLOCK_TYPES, F16, F32, BlockType, PackedMatrix
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder, load
from moekit.training import Interrupted

pytestmark = pytest.mark.processor


def shift_folder(folder: Path, offset: int) -> None:
    for file in folder.glob("**/*.safetensors"):
        shift_file(file, offset)


def run(*arguments: object) -> None:
    result = CliRunner().invoke(moekit, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def weights_of(written: Path) -> dict[str, bytes]:
    files = [written] if written.is_file() else sorted(written.glob("*.safetensors"))
    assert files
    return {file.name: file.read_bytes() for file in files}


CONVERSIONS: dict[str, list[object]] = {
    "copies": ["upcycle", "--experts", 4],
    "noise": ["upcycle", "--experts", 2, "--method", "noise", "--noise", 0.1],
    "drawn channels": ["upcycle", "--experts", 2, "--method", "drop"],
    "clusters": ["split", "--experts", 4],
    "active together": ["split", "--experts", 4, "--method", "co-activation", "--data", "DATA"],
    "q8_0": ["quantize", "--type", "q8_0"],
    "q4_k": ["quantize", "--type", "q4_k"],
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_conversions_of_one_model(conversion: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(text for texts in PROMPTS.values() for text in texts) * 200)
    verb, *options = [text if part == "DATA" else part for part in CONVERSIONS[conversion]]
    folder, found = tmp_path / "dense", list[dict[str, bytes]]()
    # A token is a byte, since the folder has no tokenizer.
    Decoder(MODELS["llama"].model_copy(update={"vocab_size": 256})).save(folder)
    for offset in (0, *OFFSETS):
        shift_folder(folder, offset)
        out = tmp_path / f"{offset}" / ("out.gguf" if verb == "quantize" else "out")
        out.parent.mkdir()
        run(verb, folder, *options, "--out", out)
        found.append(weights_of(out))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed", "router_input", "fitted", "router trained"])
def test_merges(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder, options = make_models(tmp_path), list[object]()
    changes: dict[str, Any] = {"gate_mode": mode, "backbone": "average"}
    if mode == "router trained":
        (tmp_path / "text.txt").write_text("\n".join(text for texts in PROMPTS.values() for text in texts) * 200)
        options, changes["gate_mode"] = ["--train-router", tmp_path / "text.txt", "--train-steps", 2], "fitted"
    data = recipe(folder, **changes)
    data["experts"][0]["positive_prompts"] = ["", "a"]  # of one token, and of two
    data["experts"][1] |= {"noise_scale": 0.1}
    file, found = write_recipe(folder, data), []
    for offset in (0, *OFFSETS):
        for name in ("base", "e0", "e1"):
            shift_folder(folder / name, offset)
        out = tmp_path / f"out{offset}"
        run("merge", file, "--out", out, *options)
        found.append(weights_of(out))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "latent"])
def test_logits_of_one_token_and_of_several(name: str, tmp_path: Path) -> None:
    folder, found = save(tmp_path, name), []
    for offset in (0, *OFFSETS):
        shift_folder(folder, offset)
        model = load(folder)
        assert all(parameter.data_ptr() % ALIGNMENT == 0 for parameter in model.parameters())
        with torch.no_grad():
            found.append([model(TOKENS), model(TOKENS[:1, :1])])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_resumed_run(make_config: Callable[..., ModelConfig], offset: int, tmp_path: Path) -> None:
    def interrupt(report: Any) -> None:
        if report.step == 5:
            raise Interrupted

    config = make_config()
    trainer(config, tmp_path / "whole").run(ignore)
    stopped = trainer(config, tmp_path / "parts")
    with pytest.raises(Interrupted):
        stopped.run(interrupt)
    stopped.save()
    shift_file(tmp_path / "parts", offset)
    second = trainer(config, tmp_path / "parts")
    moments = [tensor for moments in second.optimizer.state.values() for tensor in moments.values()]
    assert moments
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in moments)
    assert second.history.step == 5
    second.run(ignore)
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.skipif(not available(), reason="the native kernels are not built")
@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_native_products(kind: BlockType) -> None:
    """Of a matrix in a mapped GGUF file, whose tensors begin where the file says, and activations anywhere."""
    drawn = torch.randn(37, 512)
    matrix = quantize(drawn, kind) if kind not in (F32, F16, BF16) else plain(drawn, kind)
    for rows in (1, 2, 3, 8, 40):
        x_BD = np.random.default_rng(0).standard_normal((rows, 512), dtype=np.float32)
        products = [
            [
                product(PackedMatrix(copy(matrix.data_RB, a), kind, 512), copy(x_BD, b))
                for product in (multiply, multiply_many)
            ]
            for a in (0, *OFFSETS)
            for b in (0, *OFFSETS)
        ]
        for other in products[1:]:
            assert all(np.array_equal(x, y) for x, y in zip(products[0], other, strict=True))


def plain(drawn: torch.Tensor, kind: BlockType) -> PackedMatrix:
    dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[kind]
    return PackedMatrix(drawn.to(dtype).view(torch.uint8).numpy(), kind, 512)


def copy(array: npt.NDArray[Any], offset: int) -> Any:
    """A copy that begins `offset` bytes behind a 64-byte boundary."""
    memory = np.empty(array.nbytes + 2 * ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT + offset
    found = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    found[:] = array
    return found
