"""`moekit quantize`: what is written is what the plan says, tensor by tensor, and what is wrong is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from moekit.checkpoint.gguf import PACKED_TYPES, GGUFFile
from moekit.cli.quantize import quantize as verb
from moekit.config import DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.convert.export.gguf_export import plan_quantization
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import Advanced, ProgressEvent
from moekit.inference.packed_weights import packed_weights
from moekit.kernels.native.weights import NetworkWeights
from moekit.kernels.packed import BLOCK_TYPES_BY_NAME, BlockType, dequantize
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder, load
from moekit.models.gguf import load_gguf

MOE = MoEConfig(experts=3, expert_width=256, router=SoftmaxTopKConfig(top_k=2))


def saved(
    folder: Path, layer: DenseConfig | MoEConfig = MOE, *, layers: int = 1, tied: bool = False, **attention: object
) -> Path:
    config = ModelConfig(
        vocab_size=256,
        width=256,
        context=16,
        attention={"heads": 4, "kv_heads": 2, "head_width": 64} | attention,
        layers=(layer,) * layers,
        tie_embeddings=tied,
    )
    Decoder(config).to(torch.bfloat16).save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = saved(tmp_path_factory.mktemp("quantize") / "model")
    plan_quantization(folder, BLOCK_TYPES_BY_NAME["f32"]).run(folder.with_suffix(".f32.gguf"))
    return folder


@pytest.mark.parametrize("kind", BLOCK_TYPES_BY_NAME.values(), ids=BLOCK_TYPES_BY_NAME)
def test_every_type_holds_what_its_blocks_can(kind: BlockType, folder: Path, tmp_path: Path) -> None:
    out, written = tmp_path / "m.gguf", list[ProgressEvent]()
    quantization = plan_quantization(folder, kind)
    plan = quantization.run(out, written.append)
    assert out.stat().st_size == plan.output_bytes
    last = [event for event in written if isinstance(event, Advanced)][-1]
    assert last.done == last.total == sum(tensor.size for tensor in quantization.tensors)
    file = GGUFFile(out)
    reference = GGUFFile(folder.with_suffix(".f32.gguf"))
    for tensor in file.tensors.values():
        found, numbers = PACKED_TYPES[tensor.code], reference.rows(tensor.name)
        expected = dequantize(quantize(torch.from_numpy(numbers), found))
        assert np.array_equal(file.rows(tensor.name), expected), tensor.name
    assert sum(plan.tensors.values()) == len(file.tensors)


def test_norms_and_routers_stay_fine_and_the_head_of_few_bits_finer(folder: Path, tmp_path: Path) -> None:
    types = {tensor.name: tensor.type.name for tensor in plan_quantization(folder, BLOCK_TYPES_BY_NAME["q4_k"]).tensors}
    assert types["blk.0.attn_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "f32"
    assert types["blk.0.ffn_down_exps.weight"] == types["token_embd.weight"] == "q4_k"
    assert types["output.weight"] == "q6_k"
    tied = plan_quantization(saved(tmp_path / "tied", tied=True), BLOCK_TYPES_BY_NAME["q4_0"]).tensors
    assert {tensor.name: tensor.type.name for tensor in tied}["token_embd.weight"] == "q6_k"
    fine = {tensor.name: tensor.type.name for tensor in plan_quantization(folder, BLOCK_TYPES_BY_NAME["q8_0"]).tensors}
    assert fine["output.weight"] == "q8_0"


@pytest.mark.parametrize(("width", "instead"), [(96, "q8_0"), (40, "f16")])
def test_rows_that_are_no_whole_blocks_fall_back_and_that_is_said(width: int, instead: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "m", DenseConfig(width=width))
    quantization = plan_quantization(source, BLOCK_TYPES_BY_NAME["q4_k"])
    assert {tensor.name: tensor.type.name for tensor in quantization.tensors}["blk.0.ffn_down.weight"] == instead
    assert any(f"({width} numbers) are not whole blocks of q4_k" in note for note in quantization.notes)
    quantization.run(tmp_path / "m.gguf")
    assert load_gguf(tmp_path / "m.gguf").config.feed_forwards == (DenseConfig(width=width),)


def test_what_stands_in_the_way_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    quantization = plan_quantization(folder, BLOCK_TYPES_BY_NAME["q8_0"])
    assert quantization.plan(taken).problems == [f"{taken} exists already; name another file."]
    with pytest.raises(UsageError, match="exists already"):
        quantization.run(taken)
    assert taken.read_text() == "mine"
    windows = saved(tmp_path / "windows", layers=2, windows=(4, None))
    with pytest.raises(UsageError, match="cannot become a GGUF file: no known architecture"):
        plan_quantization(windows, BLOCK_TYPES_BY_NAME["q8_0"])


def test_a_weight_that_is_no_number_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    model = load_gguf_of(source)
    with torch.no_grad():
        model.layers[0].feed_forward.experts.down_EDF[1, 2, 3] = torch.nan
    model.save(tmp_path / "broken")
    with pytest.raises(MoekitError, match=r"'blk.0.ffn_down_exps.weight' holds numbers that are not finite"):
        plan_quantization(tmp_path / "broken", BLOCK_TYPES_BY_NAME["q4_0"]).run(tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


def load_gguf_of(folder: Path) -> Decoder:
    out = folder.with_suffix(".gguf")
    plan_quantization(folder, BLOCK_TYPES_BY_NAME["f32"]).run(out)
    return load_gguf(out)


def test_the_verb(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    arguments = [str(folder), "--type", "q6_k", "--out", str(out), "--json"]
    dry = CliRunner().invoke(verb, [*arguments, "--dry-run"])
    assert dry.exit_code == 0
    assert not out.exists()
    done = CliRunner().invoke(verb, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(dry.stdout)
    assert json.loads(done.stdout)["output_bytes"] == out.stat().st_size
    again = CliRunner().invoke(verb, [*arguments, "--dry-run"])
    assert again.exit_code == 2
    assert json.loads(again.stdout)["problems"]
    plain = CliRunner().invoke(verb, [str(folder), "--out", str(tmp_path / "n.gguf"), "--dry-run"])
    assert "bits per weight" in plain.stdout


TOO_LARGE = {"q4_0": 2e6, "q4_k": 1e9, "q6_k": 1e9, "q8_0": 2e7, "f16": 7e4, "bf16": 3.4e38}


@pytest.mark.parametrize(("kind", "value"), TOO_LARGE.items(), ids=TOO_LARGE)
def test_numbers_too_large_for_a_type_get_another(kind: str, value: float, tmp_path: Path) -> None:
    source = saved(tmp_path / "model", DenseConfig(width=256))
    model = load(source, dtype=torch.float32)
    with torch.no_grad():
        model.layers[0].feed_forward.down.weight[1, 2] = value
    model.save(tmp_path / "large")
    out = tmp_path / "large.gguf"
    quantization = plan_quantization(tmp_path / "large", BLOCK_TYPES_BY_NAME[kind])
    planned = quantization.plan(out)
    report = quantization.run(out)
    file = GGUFFile(out)
    for name in file.tensors:
        assert np.isfinite(file.numbers(name)).all(), name
    held = "f32" if kind == "bf16" else "bf16"
    assert file["blk.0.ffn_down.weight"].type.name.lower() == held
    assert f"blk.0.ffn_down.weight holds numbers that are too large for {kind}, so it is {held}." in report.notes
    assert report.output_bytes == out.stat().st_size
    assert report.tensors != planned.tensors
    assert quantization.verify(out) == len(file.tensors)
    assert file.numbers("blk.0.ffn_down.weight")[1, 2] == pytest.approx(value, rel=0.01)


def test_packing_on_load_keeps_numbers_that_are_too_large(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", DenseConfig(width=256))
    model = load(source, dtype=torch.float32)
    assert isinstance(model, Decoder)
    with torch.no_grad():
        model.layers[0].feed_forward.down.weight[1, 2] = 2e7
    packed = packed_weights(model, BLOCK_TYPES_BY_NAME["q8_0"]).layers[0].feed_forward
    assert isinstance(packed, NetworkWeights)
    assert packed.down.type.name == "bf16"
    assert packed.up.type.name == "q8_0"
